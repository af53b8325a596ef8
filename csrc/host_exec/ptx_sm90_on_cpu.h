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

// A tile of wgmma in shared memory, from the fields of its descriptor: `row` along m or n, k up to 16. Transposed, rows
// of the tile run along m or n. (PTX ISA, asynchronous warpgroup level canonical layouts.)
class Operand {
 public:
  Operand(const Site& site, uint64_t descriptor, bool transposed)
      : start_((descriptor & 0x3fff) << 4), leading_((descriptor >> 16 & 0x3fff) << 4),
        stride_((descriptor >> 32 & 0x3fff) << 4), swizzled_(descriptor >> 62 == 1), transposed_(transposed) {
    if (descriptor >> 62 > 1) fail(to_string(site) + ": a descriptor that says neither 128-byte swizzle nor none");
    if (swizzled_ && start_ / 128 % 8 != 0) fail(to_string(site) + ": a swizzled tile that starts within 8 rows");
  }
  uint16_t bits(int row, int k) const {
    uintptr_t at;
    if (swizzled_)
      at = transposed_ ? row / 64 * leading_ + k / 8 * stride_ + k % 8 * 128 + row % 64 * 2
                       : row / 8 * stride_ + row % 8 * 128 + k * 2;
    else
      at = transposed_ ? row / 8 * stride_ + k / 8 * leading_ + k % 8 * 16 + row % 8 * 2
                       : row / 8 * stride_ + k / 8 * leading_ + row % 8 * 16 + k % 8 * 2;
    at = swizzled_ ? swizzled(start_ + at) : start_ + at;
    const Block& block = Block::current();
    if (at + 2 > block.dynamic_bytes) fail("wgmma: a tile that ends outside dynamic shared memory");
    uint16_t v;
    std::memcpy(&v, block.dynamic + at, 2);
    return v;
  }

 private:
  uintptr_t start_, leading_, stride_;
  bool swizzled_, transposed_;
};

// Two rows of a[64 x 16]: `row` and row + 8.
struct TwoRows {
  uint16_t bits[2][16];
};
inline TwoRows two_rows(const Operand& a, int row) {
  TwoRows out;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) out.bits[half][k] = a.bits(row + 8 * half, k);
  return out;
}

// This thread's part of a[64 x 16] b[N x 16]^T, its columns as in the accumulator.
template <class T, int N>
void warpgroup_product(const TwoRows& a, const Operand& b, int t, std::array<float, N / 2>& product) {
  float rows[2][16], column[16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) rows[half][k] = to_float<T>(a.bits[half][k]);
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

// Issues a product whose left rows `rows()` reads, now and again when it is waited for.
template <class T, int N, class Rows>
void issue_product(const Site& site, float (&d)[N / 2], Rows rows, const Operand& b, bool accumulate) {
  Thread& thread = *Block::current().thread;
  if (!thread.accumulators.fenced()) fail(to_string(site) + ": no wgmma_fence since the last wait");
  const int t = thread.lane() % 4;
  std::array<float, N / 2> early;
  warpgroup_product<T, N>(rows(), b, t, early);
  thread.accumulators.lend(d, N / 2);
  float* const registers = d;
  thread.products.issue([=, &thread] {
    std::array<float, N / 2> late;
    warpgroup_product<T, N>(rows(), b, t, late);
    if (std::memcmp(&early, &late, sizeof(early)) != 0)
      fail(to_string(site) + ": its operands changed before it was waited for");
    float* values = thread.accumulators.values(registers);
    for (int i = 0; i < N / 2; ++i) values[i] = accumulate ? values[i] + late[i] : late[i];
    thread.accumulators.give_back(registers);
  });
}

inline void check_warpgroup(const Site& site) {
  const Block& block = Block::current();
  const unsigned group_end = unsigned(block.thread->linear / 128 + 1) * 128;
  if (block.block.x * block.block.y * block.block.z < group_end)
    fail(to_string(site) + ": the warpgroup has fewer than 128 threads");
}

}  // namespace host_exec::ptx

namespace dit {

constexpr bool has_tma = true, has_wgmma = true;

struct TensorMap {
  const unsigned char* base;
  int rank;
  int64_t sizes[4], strides[4];  // in bytes
  int box[4];
};

template <class T, int kRank>
cudaError_t make_tensor_map(TensorMap* map, const void* base, const int64_t (&sizes)[kRank],
                            const int64_t (&strides)[kRank - 1], const int (&box)[kRank]) {
  static_assert(is_half_type<T> && kRank <= 4);
  if (!host_exec::ptx::aligned(base, 16) || (box[0] != kSwizzleRowElements && box[0] != kPlainRowElements))
    return cudaErrorInvalidValue;
  *map = {static_cast<const unsigned char*>(base), kRank, {1, 1, 1, 1}, {int64_t(sizeof(T)), 0, 0, 0}, {1, 1, 1, 1}};
  for (int i = 0; i < kRank; ++i) {
    if (sizes[i] < 1 || sizes[i] > int64_t(1) << 32 || box[i] < 1 || box[i] > 256) return cudaErrorInvalidValue;
    map->sizes[i] = sizes[i], map->box[i] = box[i];
    if (i == 0) continue;
    map->strides[i] = strides[i - 1];
    if (strides[i - 1] % 16 != 0 || strides[i - 1] < 16 || strides[i - 1] >= int64_t(1) << 40)
      return cudaErrorInvalidValue;
  }
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

}  // namespace dit

namespace host_exec::ptx {

// What the engine does for one load: the box whose first element is `at`.
inline void copy_box(void* tile, const dit::TensorMap& m, std::array<int, 4> at) {
  const bool swizzle = m.box[0] == dit::kSwizzleRowElements;
  auto plain = reinterpret_cast<uintptr_t>(tile);
  for (int i3 = 0; i3 < m.box[3]; ++i3)
    for (int i2 = 0; i2 < m.box[2]; ++i2)
      for (int i1 = 0; i1 < m.box[1]; ++i1)
        for (int i0 = 0; i0 < m.box[0]; ++i0, plain += 2) {
          const int64_t i[4] = {int64_t(at[0]) + i0, int64_t(at[1]) + i1, int64_t(at[2]) + i2, int64_t(at[3]) + i3};
          bool inside = true;
          int64_t offset = 0;
          for (int d = 0; d < 4; ++d) {
            inside = inside && i[d] >= 0 && i[d] < m.sizes[d];
            offset += i[d] * m.strides[d];
          }
          uint16_t v = 0;
          if (inside) std::memcpy(&v, m.base + offset, 2);
          std::memcpy(reinterpret_cast<void*>(swizzle ? swizzled(plain) : plain), &v, 2);
        }
}

inline void load(const Site& site, void* tile, const dit::TensorMap& m, uint64_t* barrier, std::array<int, 4> at,
                 int rank) {
  Block& block = Block::current();
  const int bytes = m.box[0] * m.box[1] * m.box[2] * m.box[3] * 2;
  if (m.rank != rank) fail(to_string(site) + ": as many coordinates as the array's rank are needed");
  if (at[0] % 8 != 0) fail(to_string(site) + ": a first column that is not a multiple of 8 is an illegal instruction");
  if (!aligned(tile, m.box[0] == dit::kSwizzleRowElements ? dit::kSwizzleAtomBytes : dit::kPlainAtomBytes))
    fail(to_string(site) + ": a tile that is not aligned as its layout wants");
  if (!block.in_dynamic(tile, size_t(bytes))) fail(to_string(site) + ": tile outside dynamic shared memory");
  poison(tile, size_t(bytes));
  block.engine_issue([=] {
    copy_box(tile, m, at);
    sanitizers::release(barrier);
    const sanitizers::Bookkeeping bookkeeping;
    Mbarrier* b = mbarrier(site, barrier);
    b->bytes -= bytes;
    end_phase_if_done(b);
  });
}

// The address in a descriptor.
inline uint64_t descriptor_start(const Site& site, const void* tile) {
  const Block& block = Block::current();
  if (!block.in_dynamic(tile, 1)) fail(to_string(site) + ": tile outside dynamic shared memory");
  return uint64_t(static_cast<const unsigned char*>(tile) - block.dynamic) >> 4;
}

}  // namespace host_exec::ptx

namespace dit {

inline void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int row, int column, HOST_EXEC_CALLER) {
  host_exec::ptx::load(HOST_EXEC_SITE("TMA load"), tile, *map, barrier, {column, row, 0, 0}, 2);
}
inline void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int i0, int i1, int i2, int i3,
                     HOST_EXEC_CALLER) {
  host_exec::ptx::load(HOST_EXEC_SITE("TMA load"), tile, *map, barrier, {i0, i1, i2, i3}, 4);
}

inline void fence_proxy_async() {}
template <int kRegisters>
void setmaxnreg_more() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void setmaxnreg_fewer() {
  setmaxnreg_more<kRegisters>();
}

inline uint64_t wgmma_descriptor(const void* tile, HOST_EXEC_CALLER) {
  return host_exec::ptx::descriptor_start(HOST_EXEC_SITE("wgmma descriptor"), tile) | uint64_t(1) << 16 |
         uint64_t(kSwizzleAtomBytes >> 4) << 32 | uint64_t(1) << 62;
}
inline uint64_t wgmma_descriptor_plain(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes,
                                       HOST_EXEC_CALLER) {
  const host_exec::Site site = HOST_EXEC_SITE("wgmma descriptor");
  if (leading_bytes % 16 != 0 || stride_bytes % 16 != 0 || leading_bytes >> 18 != 0 || stride_bytes >> 18 != 0)
    host_exec::fail(to_string(site) + ": an offset that has no place in it");
  return host_exec::ptx::descriptor_start(site, tile) | uint64_t(leading_bytes >> 4) << 16 |
         uint64_t(stride_bytes >> 4) << 32;
}
template <class R, int kCount>
void wgmma_pin(R (&)[kCount]) {}
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

template <class T, int N, bool kATransposed = false, bool kBTransposed = false>
void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate, HOST_EXEC_CALLER) {
  static_assert(is_half_type<T> && N % 8 == 0 && N <= 256);
  namespace ptx = host_exec::ptx;
  const host_exec::Site site = HOST_EXEC_SITE("wgmma.mma_async");
  ptx::check_warpgroup(site);
  const bool same = host_exec::exchange(site, host_exec::kFullMask, a ^ b << 1, [=](const host_exec::Slots& s) {
    for (int l = 0; l < host_exec::kWarpSize; ++l)
      if (s.get<uint64_t>(l) != (a ^ b << 1)) return false;
    return true;
  });
  if (!same) host_exec::fail(to_string(site) + ": descriptors differ within the warp");
  const ptx::Operand left(site, a, kATransposed), right(site, b, kBTransposed);
  const host_exec::Thread& thread = *host_exec::Block::current().thread;
  const int row = 16 * (thread.warp() % 4) + thread.lane() / 4;
  ptx::issue_product<T, N>(site, d, [=] { return ptx::two_rows(left, row); }, right, accumulate);
}

template <class T, int N, bool kBTransposed = false>
void wgmma_m64k16_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, HOST_EXEC_CALLER) {
  static_assert(is_half_type<T> && N % 8 == 0 && N <= 256);
  namespace ptx = host_exec::ptx;
  const host_exec::Site site = HOST_EXEC_SITE("wgmma.mma_async of registers");
  ptx::check_warpgroup(site);
  struct Part {
    uint32_t a[4];
    uint64_t b;
  };
  struct Gathered {
    ptx::TwoRows rows;
    bool same = true;
  };
  const int group = host_exec::lane() / 4;
  const Part mine{{a[0], a[1], a[2], a[3]}, b};
  const auto all = host_exec::exchange(site, host_exec::kFullMask, mine, [=](const host_exec::Slots& s) {
    Gathered out;
    for (int l = 0; l < host_exec::kWarpSize; ++l) {
      const auto part = s.get<Part>(l);
      out.same = out.same && part.b == b;
      for (int i = 0; i < 4 && l / 4 == group; ++i) {
        const int column = l % 4 * 2 + 8 * (i / 2);
        out.rows.bits[i % 2][column] = uint16_t(part.a[i]);
        out.rows.bits[i % 2][column + 1] = uint16_t(part.a[i] >> 16);
      }
    }
    return out;
  });
  if (!all.same) host_exec::fail(to_string(site) + ": descriptors differ within the warp");
  const uint32_t* const registers = a;
  const auto rows = [=] {
    if (std::memcmp(registers, mine.a, sizeof(mine.a)) != 0)
      host_exec::fail(to_string(site) + ": its registers changed before it was waited for");
    return all.rows;
  };
  ptx::issue_product<T, N>(site, d, rows, ptx::Operand(site, b, kBTransposed), accumulate);
}

}  // namespace dit
