// SPDX-License-Identifier: Apache-2.0
// The functions of common/cuda/ptx_sm90.cuh on a CPU, written from the PTX ISA.
//
// Whatever a GPU may do early or late is arranged so that a kernel that relies on either shows it:
//   TMA     the tile is poisoned when the load is issued and filled by an engine of its own, once no thread can run
//   wgmma   reads its operands when it is issued and again when it is waited for, and insists that they are the same;
//           the accumulators are poisoned in between
// For ThreadSanitizer an arrival at an mbarrier happens before the wait it ends; nothing else here orders threads.
#pragma once
#include <array>

#include "host_exec/ptx_on_cpu.h"

namespace host_exec::ptx {

// The 64 bits of an mbarrier. `phase` is the parity of the current phase.
struct Mbarrier {
  uint16_t arrivals;
  uint16_t pending : 15, phase : 1;
  int32_t bytes;
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));

constexpr int kMaxArrivals = (1 << 15) - 1;

// A read that ThreadSanitizer sees: the barrier's initialisation must be ordered before its use.
inline void touch(const uint64_t* barrier) { (void)*static_cast<const volatile uint64_t*>(barrier); }

inline Mbarrier* mbarrier(const Site& site, uint64_t* barrier) {
  auto* m = reinterpret_cast<Mbarrier*>(barrier);
  if (!aligned(barrier, 8)) fail(to_string(site) + ": an mbarrier that is not aligned to 8 bytes");
  if (m->arrivals == 0 || m->arrivals > kMaxArrivals) fail(to_string(site) + ": an mbarrier that is not initialised");
  return m;
}

inline void end_phase_if_done(Mbarrier* m) {
  if (m->pending > 0 || m->bytes != 0) return;
  m->phase ^= 1;
  m->pending = m->arrivals & kMaxArrivals;
  Block::current().progress();
}

inline void arrive(const Site& site, uint64_t* barrier, int bytes) {
  touch(barrier);
  sanitizers::release(barrier);
  sanitizers::Bookkeeping bookkeeping;
  Mbarrier* m = mbarrier(site, barrier);
  if (m->pending == 0) fail(to_string(site) + ": more arrivals than the mbarrier's count");
  m->bytes += bytes;
  m->pending = (m->pending - 1) & kMaxArrivals;
  end_phase_if_done(m);
}

// Where the byte at `address` of an unswizzled tile lies.
inline uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

// A tile of wgmma, from the fields of its descriptor.
class Operand {
 public:
  Operand(const Site& site, uint64_t descriptor)
      : start_((descriptor & 0x3fff) << 4), stride_((descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) fail(to_string(site) + ": a descriptor that does not say 128-byte swizzle");
  }
  uint16_t bits(int row, int k) const {
    const unsigned char* base = Block::current().dynamic;
    uint16_t v;
    std::memcpy(&v, base + swizzled(start_ + uintptr_t(row / 8) * stride_ + row % 8 * 128 + k * 2), 2);
    return v;
  }

 private:
  uintptr_t start_, stride_;
};

// This thread's part of a[64 x 16] b[N x 16]^T: rows `row` and row + 8, its columns as in the accumulator.
template <class T, int N>
void warpgroup_product(const Operand& a, const Operand& b, int row, int t, std::array<float, N / 2>& product) {
  float rows[2][16], column[16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) rows[half][k] = to_float<T>(a.bits(row + 8 * half, k));
  for (int j = 0; j < N / 8; ++j)
    for (int e = 0; e < 2; ++e) {
      for (int k = 0; k < 16; ++k) column[k] = to_float<T>(b.bits(8 * j + 2 * t + e, k));
      for (int half = 0; half < 2; ++half) {
        float sum = 0.f;
        for (int k = 0; k < 16; ++k) sum += rows[half][k] * column[k];
        product[4 * j + 2 * half + e] = sum;
      }
    }
}

}  // namespace host_exec::ptx

namespace dit {

constexpr bool has_tma = true, has_wgmma = true;

struct TensorMap {
  const unsigned char* base;
  int64_t rows, columns, row_bytes;
  int box_rows;
};

template <class T>
cudaError_t make_tensor_map(TensorMap* map, const void* base, int64_t rows, int64_t columns, int64_t row_bytes,
                            int box_rows) {
  static_assert(is_half_type<T>);
  if (!host_exec::ptx::aligned(base, 16) || row_bytes % 16 != 0 || row_bytes < columns * int64_t(sizeof(T)) ||
      rows < 1 || columns < 1 || box_rows < 1 || box_rows > 256)
    return cudaErrorInvalidValue;
  *map = {static_cast<const unsigned char*>(base), rows, columns, row_bytes, box_rows};
  return cudaSuccess;
}

inline void mbarrier_init(uint64_t* barrier, int arrivals, HOST_EXEC_CALLER) {
  const host_exec::Site site = HOST_EXEC_SITE("mbarrier.init");
  if (arrivals < 1 || arrivals > host_exec::ptx::kMaxArrivals) host_exec::fail(to_string(site) + ": a count of " +
                                                                               std::to_string(arrivals));
  *barrier = 0;
  const host_exec::sanitizers::Bookkeeping bookkeeping;
  auto* m = reinterpret_cast<host_exec::ptx::Mbarrier*>(barrier);
  m->arrivals = uint16_t(arrivals);
  m->pending = arrivals & host_exec::ptx::kMaxArrivals;
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier, HOST_EXEC_CALLER) {
  host_exec::ptx::arrive(HOST_EXEC_SITE("mbarrier.arrive"), barrier, 0);
}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes, HOST_EXEC_CALLER) {
  host_exec::ptx::arrive(HOST_EXEC_SITE("mbarrier.arrive.expect_tx"), barrier, bytes);
}
inline void mbarrier_wait(uint64_t* barrier, int parity, HOST_EXEC_CALLER) {
  const host_exec::Site site = HOST_EXEC_SITE("mbarrier.try_wait");
  host_exec::ptx::touch(barrier);
  {
    const host_exec::sanitizers::Bookkeeping bookkeeping;
    host_exec::Block::current().poll(
        site, [&] { return host_exec::ptx::mbarrier(site, barrier)->phase != (parity & 1); });
  }
  host_exec::sanitizers::acquire(barrier);
}

inline void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int row, int column, HOST_EXEC_CALLER) {
  const host_exec::Site site = HOST_EXEC_SITE("TMA load");
  host_exec::Block& block = host_exec::Block::current();
  const TensorMap m = *map;
  const int bytes = m.box_rows * 128;
  if (!host_exec::ptx::aligned(tile, kSwizzleAtomBytes)) host_exec::fail(to_string(site) + ": tile not aligned to 1024");
  if (!block.in_dynamic(tile, size_t(bytes))) host_exec::fail(to_string(site) + ": tile outside dynamic shared memory");
  host_exec::poison(tile, size_t(bytes));
  block.engine_issue([=] {
    for (int r = 0; r < m.box_rows; ++r)
      for (int c = 0; c < kSwizzleRowElements; ++c) {
        uint16_t v = 0;
        const int64_t i = int64_t(row) + r, j = int64_t(column) + c;
        if (i >= 0 && i < m.rows && j >= 0 && j < m.columns) std::memcpy(&v, m.base + i * m.row_bytes + j * 2, 2);
        const uintptr_t plain = reinterpret_cast<uintptr_t>(tile) + uintptr_t(r * 128 + c * 2);
        std::memcpy(reinterpret_cast<void*>(host_exec::ptx::swizzled(plain)), &v, 2);
      }
    host_exec::sanitizers::release(barrier);
    const host_exec::sanitizers::Bookkeeping bookkeeping;
    host_exec::ptx::Mbarrier* b = host_exec::ptx::mbarrier(site, barrier);
    b->bytes -= bytes;
    host_exec::ptx::end_phase_if_done(b);
  });
}

inline uint64_t wgmma_descriptor(const void* tile, HOST_EXEC_CALLER) {
  const host_exec::Block& block = host_exec::Block::current();
  if (!block.in_dynamic(tile, 1))
    host_exec::fail(to_string(HOST_EXEC_SITE("wgmma descriptor")) + ": tile outside dynamic shared memory");
  const auto offset = static_cast<const unsigned char*>(tile) - block.dynamic;
  return uint64_t(offset) >> 4 | uint64_t(1) << 16 | uint64_t(kSwizzleAtomBytes >> 4) << 32 | uint64_t(1) << 62;
}
inline void wgmma_fence() { host_exec::Block::current().thread->accumulators.fence(); }
inline void wgmma_commit() { host_exec::Block::current().thread->products.commit(); }
template <int Groups>
void wgmma_wait(HOST_EXEC_CALLER) {
  host_exec::Block& block = host_exec::Block::current();
  host_exec::Thread& thread = *block.thread;
  if (thread.products.more_than(Groups)) block.wait_late(HOST_EXEC_SITE("wgmma.wait_group"));
  while (thread.products.more_than(Groups)) thread.products.complete_oldest();
  thread.accumulators.unfence();
}

template <class T, int N>
void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate, HOST_EXEC_CALLER) {
  static_assert(is_half_type<T> && N % 8 == 0 && N <= 256);
  namespace ptx = host_exec::ptx;
  const host_exec::Site site = HOST_EXEC_SITE("wgmma.mma_async");
  host_exec::Block& block = host_exec::Block::current();
  host_exec::Thread& thread = *block.thread;
  const unsigned group_end = unsigned(thread.linear / 128 + 1) * 128;
  if (block.block.x * block.block.y * block.block.z < group_end)
    host_exec::fail(to_string(site) + ": the warpgroup has fewer than 128 threads");
  if (!thread.accumulators.fenced()) host_exec::fail(to_string(site) + ": no wgmma_fence since the last wait");
  const bool same = host_exec::exchange(site, host_exec::kFullMask, a ^ b << 1, [=](const host_exec::Slots& s) {
    for (int l = 0; l < host_exec::kWarpSize; ++l)
      if (s.get<uint64_t>(l) != (a ^ b << 1)) return false;
    return true;
  });
  if (!same) host_exec::fail(to_string(site) + ": descriptors differ within the warp");
  const ptx::Operand left(site, a), right(site, b);
  const int row = 16 * (thread.warp() % 4) + thread.lane() / 4, t = thread.lane() % 4;
  std::array<float, N / 2> early;
  ptx::warpgroup_product<T, N>(left, right, row, t, early);
  thread.accumulators.lend(d, N / 2);
  float* const registers = d;
  thread.products.issue([=, &thread] {
    std::array<float, N / 2> late;
    ptx::warpgroup_product<T, N>(left, right, row, t, late);
    if (std::memcmp(&early, &late, sizeof(early)) != 0)
      host_exec::fail(to_string(site) + ": its operands changed before it was waited for");
    float* values = thread.accumulators.values(registers);
    for (int i = 0; i < N / 2; ++i) values[i] = accumulate ? values[i] + late[i] : late[i];
    thread.accumulators.give_back(registers);
  });
}

}  // namespace dit
