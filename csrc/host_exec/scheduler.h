// SPDX-License-Identifier: Apache-2.0
// Runs one block of a CUDA kernel at a time on one CPU thread: a fiber per CUDA thread.
//
// A fiber runs until it must wait: at a block barrier, at a warp collective (collectives.h), or for asynchronous work.
// The scheduler then picks another that can run, in the order of settings.h. Waiting comes in four kinds:
//   block_barrier   until every thread of the block that has not exited is there
//   suspend         until another fiber calls make_ready (warp collectives)
//   poll            until a predicate holds (mbarriers)
//   wait_late       until no other thread can run: asynchronous copies complete as late as is legal
// Work that no thread does itself (TMA) is done by an engine, one piece at a time, when no thread can run. When nothing
// is left to do and threads remain, the block is deadlocked, and the error names threads and where they wait.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "host_exec/sanitizers.h"

namespace host_exec {

// Ends the kernel: dit::launch then returns cudaErrorLaunchFailure, dit::error_string this message.
[[noreturn]] void fail(const std::string& message);

// What a thread waits at, for messages.
struct Site {
  const char* operation;
  const char* file;
  int line;
};
std::string to_string(const Site& site);
std::string to_string(const uint3& v);

// Asynchronous work of one thread in the style of cp.async and wgmma: issued, committed as a group, waited for.
class AsyncGroups {
 public:
  using Work = std::function<void()>;
  void issue(Work work) { open_.push_back(std::move(work)); }
  void commit();
  bool more_than(size_t groups) const { return closed_.size() > groups; }
  void complete_oldest();
  bool idle() const { return open_.empty() && closed_.empty(); }
  void clear();

 private:
  std::vector<Work> open_;
  std::vector<std::vector<Work>> closed_;
};

// Registers that wgmma adds into. From the issue until the wait they belong to it: they are poisoned, and their values
// kept here.
class Accumulators {
 public:
  void lend(float* registers, size_t count);
  float* values(const float* registers) { return find(registers).values.data(); }
  void give_back(float* registers);
  void fence() { fenced_ = true; }
  void unfence() { fenced_ = false; }
  bool fenced() const { return fenced_; }
  void clear();

 private:
  struct Lent {
    float* registers;
    std::vector<float> values;
    int times;
  };
  Lent& find(const float* registers);
  std::vector<Lent> lent_;
  bool fenced_ = false;
};

struct Stack {
  char* bottom = nullptr;
  void* sanitizer_fiber = nullptr;
};

struct Thread {
  int linear = 0;    // x + y * blockDim.x + z * blockDim.x * blockDim.y
  uint3 index{};     // threadIdx
  bool done = true;
  Site site{"start", "", 0};
  bool at_barrier = false;
  AsyncGroups copies;    // cp.async
  AsyncGroups products;  // wgmma
  Accumulators accumulators;
  void* context = nullptr;
  Stack stack;

  int lane() const { return linear & 31; }
  int warp() const { return linear >> 5; }
};

// A kernel with its arguments: call(arguments) is what each thread runs.
struct Body {
  void (*call)(const void* arguments);
  const void* arguments;
};

struct Warp;  // collectives.h

class Block {
 public:
  Block(dim3 grid, dim3 block, size_t dynamic_bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void run(uint3 index, const Body& body);

  // The block being run. Only one is, in the whole process.
  static Block& current() { return *running; }

  const dim3 grid, block;
  const size_t dynamic_bytes;  // of dynamic shared memory
  uint3 index{};               // blockIdx
  unsigned char* dynamic = nullptr;
  Thread* thread = nullptr;    // the one running

  Warp& warp() { return *warps_[thread->warp()]; }
  bool in_dynamic(const void* p, size_t bytes) const;

  // Called by fibers.
  void block_barrier(const Site& site);
  void suspend(const Site& site);
  void make_ready(int linear) { ready_[linear >> 6] |= uint64_t(1) << (linear & 63); }
  void wait_late(const Site& site);
  template <class Predicate>
  void poll(const Site& site, Predicate done) {
    while (!done()) park(site);
    progress();
  }
  void engine_issue(std::function<void()> work);
  // Tells the pollers that what they wait for may have come.
  void progress() { progress_ = true; }

 private:
  static Block* running;
  void prepare(uint3 index, const Body& body);
  void schedule();
  static void start();
  void run_thread(Thread& t);
  void resume(Thread& t);
  void yield(Thread& t, bool for_good);
  void park(const Site& site);
  bool run_engine();
  void do_as_engine(const std::function<void()>& work);
  void settle();
  void release_barrier();
  int release(std::vector<int>& waiting);
  int take();
  uint64_t next_random();
  int first_ready(int from) const;
  int last_ready() const;
  std::string deadlock() const;

  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  Body body_{};
  int live_ = 0, at_barrier_ = 0;
  bool progress_ = true;
  uint64_t ready_[16] = {};
  uint64_t random_;
  std::vector<int> parked_, late_;
  std::vector<std::function<void()>> engine_;
  std::exception_ptr error_;

  void* scheduler_context_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  void *scheduler_fiber_ = nullptr, *engine_fiber_ = nullptr;
  char barrier_tag_ = 0, engine_tag_ = 0;
};

// 0xFF in every byte: NaN in bfloat16, float16 and float32, -1 in integers.
void poison(void* p, size_t bytes);

}  // namespace host_exec
