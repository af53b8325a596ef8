// SPDX-License-Identifier: Apache-2.0
#include "host_exec/scheduler.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "host_exec/collectives.h"
#include "host_exec/context.h"
#include "host_exec/settings.h"

HOST_EXEC_DEFINE_SWITCH;

namespace host_exec {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kPageBytes = 4096;
constexpr size_t kDynamicAlignment = 1024;  // what a 128-byte-swizzled tile needs

// Of earlier launches, for reuse: mapping pages and telling ThreadSanitizer of a fiber take long.
std::vector<Stack>& spare_stacks() {
  static std::vector<Stack> stacks;
  return stacks;
}

Stack take_stack() {
  auto& spare = spare_stacks();
  if (!spare.empty()) {
    const Stack stack = spare.back();
    spare.pop_back();
    return stack;
  }
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, kPageBytes, PROT_NONE);  // an overflow faults instead of reaching the neighbour
  return {static_cast<char*>(p), sanitizers::create_fiber()};
}

// An abandoned stack holds frames that will never return.
void give_back(Stack stack, bool abandoned) {
  if (abandoned) {
    sanitizers::forget_stack(stack.bottom + kPageBytes, kStackBytes - kPageBytes);
    stack.sanitizer_fiber = sanitizers::create_fiber();
  }
  spare_stacks().push_back(stack);
}

// Sorted numbers as ranges: "0-31, 64".
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0, j; i < numbers.size(); i = j) {
    for (j = i + 1; j < numbers.size() && numbers[j] == numbers[j - 1] + 1;) ++j;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
    if (j - i > 1) text += "-" + std::to_string(numbers[j - 1]);
  }
  return text;
}

// Dynamic shared memory of one block. AddressSanitizer knows where it ends; without it, bytes behind the end tell
// whether they were written.
class DynamicMemory {
 public:
  explicit DynamicMemory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    void* p = nullptr;
    if (posix_memalign(&p, kDynamicAlignment, bytes + kGuardBytes)) throw std::bad_alloc();
    memory_.reset(static_cast<unsigned char*>(p));
    poison(p, bytes + kGuardBytes);
  }
  unsigned char* get() const { return memory_.get(); }
  void check() const {
    for (size_t i = 0; memory_ && i < kGuardBytes; ++i)
      if (memory_.get()[bytes_ + i] != 0xFF)
        fail("a write " + std::to_string(i) + " bytes past the end of dynamic shared memory");
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGuardBytes = 0;
#else
  static constexpr size_t kGuardBytes = 256;
#endif
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

}  // namespace

void fail(const std::string& message) { throw std::runtime_error(message); }

std::string to_string(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string to_string(const Site& site) {
  if (!*site.file) return site.operation;
  const char* slash = std::strrchr(site.file, '/');
  return std::string(site.operation) + " (" + (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

__attribute__((noinline)) void poison(void* p, size_t bytes) { std::memset(p, 0xFF, bytes); }

void AsyncGroups::commit() {
  closed_.push_back(std::move(open_));
  open_.clear();
}

void AsyncGroups::complete_oldest() {
  for (auto& work : closed_.front()) work();
  closed_.erase(closed_.begin());
}

void AsyncGroups::clear() {
  open_.clear();
  closed_.clear();
}

Accumulators::Lent& Accumulators::find(const float* registers) {
  for (auto& lent : lent_)
    if (lent.registers == registers) return lent;
  fail("wgmma: accumulators that were not lent");
}

void Accumulators::lend(float* registers, size_t count) {
  for (auto& lent : lent_)
    if (lent.registers == registers) {
      ++lent.times;
      return;
    }
  lent_.push_back({registers, std::vector<float>(registers, registers + count), 1});
  poison(registers, count * sizeof(float));
}

void Accumulators::give_back(float* registers) {
  Lent& lent = find(registers);
  if (--lent.times > 0) return;
  std::memcpy(registers, lent.values.data(), lent.values.size() * sizeof(float));
  lent = std::move(lent_.back());
  lent_.pop_back();
}

void Accumulators::clear() {
  lent_.clear();
  fenced_ = false;
}

Block* Block::running = nullptr;

Block::Block(dim3 grid_size, dim3 block_size, size_t dynamic_size)
    : grid(grid_size), block(block_size), dynamic_bytes(dynamic_size),
      random_(settings.seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull) {
  const unsigned n = block.x * block.y * block.z;
  threads_.resize(n);
  for (unsigned i = 0; i < n; ++i) {
    threads_[i].linear = int(i);
    threads_[i].index = uint3{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    threads_[i].stack = take_stack();
  }
  for (unsigned first = 0; first < n; first += kWarpSize) warps_.push_back(std::make_unique<Warp>());
}

Block::~Block() {
  for (auto& t : threads_) give_back(t.stack, !t.done);
}

bool Block::in_dynamic(const void* p, size_t bytes) const {
  const auto* b = static_cast<const unsigned char*>(p);
  return b >= dynamic && b + bytes <= dynamic + dynamic_bytes;
}

void Block::run(uint3 block_index, const Body& body) {
  const DynamicMemory memory(dynamic_bytes);
  dynamic = memory.get();
  scheduler_fiber_ = sanitizers::current_fiber();
  static void* const engine = sanitizers::create_fiber();
  engine_fiber_ = engine;
  for (auto& t : threads_) sanitizers::release(&t);
  {
    sanitizers::Bookkeeping bookkeeping;
    prepare(block_index, body);
    running = this;
    schedule();
    running = nullptr;
    if (!error_ && !engine_.empty())
      error_ = std::make_exception_ptr(std::runtime_error("the block ends with TMA loads nobody waited for"));
    engine_.clear();
  }
  settle();
  if (error_) std::rethrow_exception(error_);
  memory.check();
}

void Block::prepare(uint3 block_index, const Body& body) {
  index = block_index;
  body_ = body;
  live_ = int(threads_.size());
  at_barrier_ = 0;
  progress_ = true;
  for (auto& warp : warps_) warp->live = 0;
  for (auto& t : threads_) {
    t.done = t.at_barrier = false;
    t.site = Site{"start", "", 0};
    t.context = new_context(t.stack.bottom + kStackBytes, &Block::start);
    warps_[t.warp()]->live |= 1u << t.lane();
    make_ready(t.linear);
  }
}

void Block::schedule() {
  while (live_ > 0 && !error_) {
    int next = take();
    if (next < 0 && progress_ && !parked_.empty()) {
      progress_ = false;
      next = release(parked_);
    }
    if (next < 0 && !late_.empty()) next = release(late_);
    if (next < 0 && run_engine()) continue;
    if (next < 0) {
      error_ = std::make_exception_ptr(std::runtime_error(deadlock()));
      return;
    }
    thread = &threads_[next];
    resume(*thread);
  }
}

HOST_EXEC_UNSEEN void Block::resume(Thread& t) {
  void* keep = nullptr;
  sanitizers::before_switch(&keep, t.stack.bottom, kStackBytes);
  sanitizers::become_fiber(t.stack.sanitizer_fiber);
  host_exec_switch(&scheduler_context_, t.context);
  sanitizers::after_switch(keep, nullptr, nullptr);
}

HOST_EXEC_UNSEEN void Block::yield(Thread& t, bool for_good) {
  void* keep = nullptr;
  sanitizers::before_switch(for_good ? nullptr : &keep, scheduler_stack_, scheduler_stack_bytes_);
  sanitizers::become_fiber(scheduler_fiber_);
  host_exec_switch(&t.context, scheduler_context_);
  sanitizers::after_switch(keep, &scheduler_stack_, &scheduler_stack_bytes_);
}

HOST_EXEC_UNSEEN void Block::start() {
  Block& b = current();
  sanitizers::after_switch(nullptr, &b.scheduler_stack_, &b.scheduler_stack_bytes_);
  Thread& t = *b.thread;
  sanitizers::acquire(&t);
  b.run_thread(t);
  b.yield(t, true);
  std::abort();
}

void Block::run_thread(Thread& t) {
  std::exception_ptr error;
  try {
    body_.call(body_.arguments);
    if (!t.copies.idle()) fail("thread " + std::to_string(t.linear) + " exits with cp.async copies nobody waited for");
    if (!t.products.idle()) fail("thread " + std::to_string(t.linear) + " exits with wgmma nobody waited for");
  } catch (...) {
    error = std::current_exception();
  }
  sanitizers::Bookkeeping bookkeeping;
  t.copies.clear();
  t.products.clear();
  t.accumulators.clear();
  t.done = true;
  progress_ = true;
  --live_;
  Warp& its_warp = *warps_[t.warp()];
  its_warp.live &= ~(1u << t.lane());
  for (auto& r : its_warp.gathering)
    if (!error && (r->mask >> t.lane() & 1))
      error = std::make_exception_ptr(std::runtime_error("thread " + std::to_string(t.linear) +
                                                         " exited while its warp waits at " + to_string(r->site)));
  if (error && !error_) error_ = error;
  if (live_ > 0 && at_barrier_ == live_) release_barrier();
}

void Block::block_barrier(const Site& site) {
  sanitizers::release(&barrier_tag_);
  {
    sanitizers::Bookkeeping bookkeeping;
    for (auto& t : threads_)
      if (t.at_barrier && (t.site.line != site.line || std::strcmp(t.site.file, site.file) != 0))
        fail("divergent block: thread " + std::to_string(thread->linear) + " is at " + to_string(site) +
             " while thread " + std::to_string(t.linear) + " waits at " + to_string(t.site));
      else if (t.at_barrier)
        break;  // the others at the barrier are where this one is
    if (++at_barrier_ == live_) {
      release_barrier();
    } else {
      thread->at_barrier = true;
      suspend(site);
    }
  }
  sanitizers::acquire(&barrier_tag_);
}

void Block::release_barrier() {
  at_barrier_ = 0;
  progress_ = true;
  for (auto& t : threads_)
    if (t.at_barrier) {
      t.at_barrier = false;
      make_ready(t.linear);
    }
}

void Block::suspend(const Site& site) {
  thread->site = site;
  yield(*thread, false);
}

void Block::park(const Site& site) {
  parked_.push_back(thread->linear);
  suspend(site);
}

void Block::wait_late(const Site& site) {
  sanitizers::Bookkeeping bookkeeping;
  late_.push_back(thread->linear);
  suspend(site);
}

void Block::engine_issue(std::function<void()> work) {
  sanitizers::release(&engine_tag_);
  sanitizers::Bookkeeping bookkeeping;
  engine_.push_back(std::move(work));
}

bool Block::run_engine() {
  if (engine_.empty()) return false;
  size_t i = 0;  // pieces of work may be done in any order
  if (settings.order == Order::descending) i = engine_.size() - 1;
  if (settings.order == Order::random) i = next_random() % engine_.size();
  const auto work = std::move(engine_[i]);
  engine_.erase(engine_.begin() + ptrdiff_t(i));
  do_as_engine(work);
  progress_ = true;
  return true;
}

HOST_EXEC_UNSEEN void Block::do_as_engine(const std::function<void()>& work) {
  sanitizers::become_fiber(engine_fiber_);
  sanitizers::acquire(&engine_tag_);
  try {
    work();
  } catch (...) {
    error_ = std::current_exception();
  }
  sanitizers::become_fiber(scheduler_fiber_);
}

// What the engine did, and threads that never run again after an error, happened before what follows.
void Block::settle() {
  sanitizers::release_for(engine_fiber_, this, scheduler_fiber_);
  for (auto& t : threads_) sanitizers::release_for(t.stack.sanitizer_fiber, this, scheduler_fiber_);
  sanitizers::acquire(this);
}

uint64_t Block::next_random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_ >> 20;
}

int Block::release(std::vector<int>& waiting) {
  for (int i : waiting) make_ready(i);
  waiting.clear();
  return take();
}

int Block::first_ready(int from) const {
  const int words = int(threads_.size() + 63) / 64;
  for (int w = from / 64; w < words; ++w) {
    const uint64_t bits = w == from / 64 ? ready_[w] & ~uint64_t(0) << (from & 63) : ready_[w];
    if (bits) return w * 64 + __builtin_ctzll(bits);
  }
  return -1;
}

int Block::last_ready() const {
  for (int w = 15; w >= 0; --w)
    if (ready_[w]) return w * 64 + 63 - __builtin_clzll(ready_[w]);
  return -1;
}

int Block::take() {
  int i = -1;
  switch (settings.order) {
    case Order::ascending: i = first_ready(0); break;
    case Order::descending: i = last_ready(); break;
    case Order::random:  // the first at or after a random one
      i = first_ready(int(next_random() % threads_.size()));
      if (i < 0) i = first_ready(0);
      break;
  }
  if (i >= 0) ready_[i >> 6] &= ~(uint64_t(1) << (i & 63));
  return i;
}

std::string Block::deadlock() const {
  std::map<std::string, std::vector<int>> waiting;
  for (auto& t : threads_)
    if (!t.done) waiting[to_string(t.site)].push_back(t.linear);
  std::string text = "deadlock in block " + to_string(index) + ":";
  for (auto& [site, numbers] : waiting) text += " threads " + ranges(numbers) + " at " + site + ";";
  text.pop_back();
  return text;
}

}  // namespace host_exec
