// SPDX-License-Identifier: Apache-2.0
// What the sanitizers must be told about fibers.
//
// AddressSanitizer: which stack is running. ThreadSanitizer: each fiber is a thread of its own, and only what host_exec
// says orders two of them: barriers, warp synchronisation, mbarriers, the start and the end of a kernel. So a kernel
// that lacks a barrier has a data race and is reported. Without sanitizers all of this compiles to nothing.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// A function whose memory accesses ThreadSanitizer does not see: those around a switch belong to no fiber.
#define HOST_EXEC_UNSEEN __attribute__((noinline, no_sanitize("thread")))

namespace host_exec::sanitizers {

constexpr const char* name() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#elif defined(__SANITIZE_THREAD__)
  return "thread";
#else
  return "none";
#endif
}

// While one lives, ThreadSanitizer ignores this fiber's memory accesses: they are host_exec's own bookkeeping, shared
// by all fibers, which cannot race because fibers take turns.
class Bookkeeping {
 public:
#if defined(__SANITIZE_THREAD__)
  Bookkeeping() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Bookkeeping() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Bookkeeping() {}
  ~Bookkeeping() {}
#endif
  Bookkeeping(const Bookkeeping&) = delete;
  Bookkeeping& operator=(const Bookkeeping&) = delete;
};

// Everything this fiber did before release(tag) happens before everything another does after acquire(tag).
inline void release([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(tag);
#endif
}
inline void acquire([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(tag);
#endif
}

// ThreadSanitizer's handle of a fiber; null elsewhere.
inline void* current_fiber() {
#if defined(__SANITIZE_THREAD__)
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}
inline void* create_fiber() {
#if defined(__SANITIZE_THREAD__)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}
// Hands the processor to `fiber` without ordering anything. Inlined, because ThreadSanitizer counts calls and returns
// of each fiber.
__attribute__((always_inline)) inline void become_fiber([[maybe_unused]] void* fiber) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync);
#endif
}

// release(tag) in the name of `fiber`, which is not running; `self` is.
HOST_EXEC_UNSEEN inline void release_for([[maybe_unused]] void* fiber, [[maybe_unused]] void* tag,
                                         [[maybe_unused]] void* self) {
#if defined(__SANITIZE_THREAD__)
  become_fiber(fiber);
  __tsan_release(tag);
  become_fiber(self);
#endif
}

// AddressSanitizer: call before_switch just before leaving a stack (with keep = null when it will never be entered
// again) and after_switch as the first thing on the new one, which learns the stack it came from.
inline void before_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* bottom,
                          [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, bottom, size);
#endif
}
inline void after_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** from_bottom,
                         [[maybe_unused]] size_t* from_size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, from_bottom, from_size);
#endif
}
// A stack that is used again starts without the marks of the frames that were abandoned on it.
inline void forget_stack([[maybe_unused]] void* bottom, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, size);
#endif
}

}  // namespace host_exec::sanitizers
