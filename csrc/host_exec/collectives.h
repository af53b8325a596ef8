// SPDX-License-Identifier: Apache-2.0
// Operations that the threads of a warp do together: shuffles, ballots, __syncwarp, ldmatrix, mma, wgmma.
//
// Each lane of the mask hands over a value and waits; the last one to arrive runs `combine` once on all of them; then
// each takes its result. The mask and the operation must be the same for all: lanes of one mask at two different
// operations, a mask that names an exited lane, or a lane outside its own mask end the kernel with an error.
#pragma once
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "host_exec/scheduler.h"

namespace host_exec {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// One value from each lane.
struct Slots {
  static constexpr size_t kBytes = 64;
  alignas(64) unsigned char bytes[kWarpSize][kBytes];

  template <class T>
  T get(int lane) const {
    static_assert(sizeof(T) <= kBytes && std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, bytes[lane], sizeof(T));
    return value;
  }
  template <class T>
  void set(int lane, const T& value) {
    static_assert(sizeof(T) <= kBytes && std::is_trivially_copyable_v<T>);
    std::memcpy(bytes[lane], &value, sizeof(T));
  }
};

// A meeting of the lanes of `mask`, from the first arrival until the last lane has its result.
struct Rendezvous {
  Site site{};
  unsigned mask = 0, arrived = 0, unread = 0;
  Slots slots;
};

struct Warp {
  unsigned live = 0;  // lanes that have not exited
  std::vector<std::unique_ptr<Rendezvous>> gathering, reading, spare;
  char sync_tag = 0;  // what __syncwarp orders, for ThreadSanitizer
};

// enter() returns once `combine` may be run (last arrival, `last` true) or has been run.
Rendezvous& enter(const Site& site, unsigned mask, const void* value, size_t bytes, bool& last);
void complete(Rendezvous& r);
void leave(Rendezvous& r);

template <class T, class Combine, class Take>
auto collective(const Site& site, unsigned mask, const T& value, Combine&& combine, Take&& take) {
  static_assert(sizeof(T) <= Slots::kBytes && std::is_trivially_copyable_v<T>);
  sanitizers::Bookkeeping bookkeeping;
  bool last = false;
  Rendezvous& r = enter(site, mask, &value, sizeof(T), last);
  if (last) {
    combine(r.slots);
    complete(r);
  }
  auto result = take(static_cast<const Slots&>(r.slots));
  leave(r);
  return result;
}

// Without a combining step.
template <class T, class Take>
auto exchange(const Site& site, unsigned mask, const T& value, Take&& take) {
  return collective(site, mask, value, [](Slots&) {}, take);
}

}  // namespace host_exec
