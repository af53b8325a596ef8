// SPDX-License-Identifier: Apache-2.0
// Products of matrices that lie in a core's cache, and the forms their operands take there.
//
//   c[r][j] = or += sum_k a[r][k] * b[k][j], all sums float32
//
// Operands are made of 4-byte units: a float (Floats), or two bf16 that are neighbours along k, the first in the low
// half (Pairs), for processors that multiply such pairs. A missing second one is 0.
//   a: unit (r, k) at a.at + r * a.row + k * a.step
//   b: panels one vector wide, unit (k, j) at b.at + j / W * b.panel + k * W + j % W
// Include only in *_cpu.cpp files.
#pragma once
#include <algorithm>
#include <memory>
#include <new>

#include "common/cpu/transpose.h"
#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

struct Left {
  const float* at;
  int64_t row, step;
};
struct Right {
  const float* at;
  int64_t panel;
};
struct Sums {
  float* at;
  int64_t row;
};

// A tile holds this many vectors of sums in registers: of 16 registers, or 32, some remain for the operands.
#if defined(__AVX512F__)
constexpr int kTileSums = 24, kTileVectors = 4;
#else
constexpr int kTileSums = 12, kTileVectors = 3;
#endif

constexpr int64_t kRowBlock = 24;  // whole tiles of any shape
static_assert(kRowBlock % kTileSums == 0, "a tile is at most kTileSums rows");

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t vector_count(int64_t n) { return (n + W - 1) / W; }

struct Floats {
  static constexpr int64_t kDepth = 1;  // elements of a unit
  static F spread(const float* a) { return splat(*a); }
  static F multiply_add(F sum, F a, F b) { return sum + a * b; }
};

// Where a kernel may take Pairs. DIT_EMULATE_PAIRS is for tests: it takes them everywhere, with a twin of the
// instruction.
#if defined(DIT_EMULATE_PAIRS)
#define DIT_PAIRS
inline bool pairs_supported() { return true; }
#elif defined(__AVX512F__)
#define DIT_PAIRS
inline bool pairs_supported() { return __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(DIT_PAIRS)
struct Pairs {
  static constexpr int64_t kDepth = 2;

  static F spread(const float* a) {
    uint32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return (F)(U{} + pair);
  }

#if defined(DIT_EMULATE_PAIRS)
  // vdpbf16ps: denormal operands and results are 0. A product of two bf16 is exact; we round after adding each, the
  // second first, as Intel's manual has it. A processor may round at other places: by one unit more or less.
  static F normal(F v) {
    const U exponent = (U)v & 0x7f800000;
    return (exponent == 0) ? F{} : v;
  }
  static F multiply_add(F sum, F a, F b) {
    const F second = normal((F)((U)a & 0xffff0000)) * normal((F)((U)b & 0xffff0000));
    const F first = normal((F)((U)a << 16)) * normal((F)((U)b << 16));
    return normal(normal(normal(sum) + second) + first);
  }
#else
  // An instruction of its own in a build for all of AVX-512: pairs_supported() says whether it may run.
  static F multiply_add(F sum, F a, F b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
#endif
};
#endif

template <class M>
inline int64_t units(int64_t elements) {
  return (elements + M::kDepth - 1) / M::kDepth;
}

// A long sum is made of sums of at most so many units, which keeps its rounding error that of a short one.
constexpr int64_t kTileDepth = 48;

// N vectors of columns, kTileSums / N rows at a time. Not inlined: in the middle of a larger function GCC spills the
// sums.
template <class M, int N>
__attribute__((noinline)) void product_columns(Sums c, Left a, Right b, int64_t rows, int64_t depth, bool add) {
  constexpr int R = kTileSums / N;
  const int64_t parts = (depth + kTileDepth - 1) / kTileDepth;
  for (; rows > 0; rows -= R, a.at += R * a.row, c.at += R * c.row) {
    const float *left = a.at, *right = b.at;
    for (int64_t part = 0; part < parts; ++part) {
      F sums[R][N] = {};
      for (int64_t k = (part + 1) * depth / parts - part * depth / parts; k > 0; --k, left += a.step, right += W) {
        F column[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) column[j] = load(right + j * b.panel);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const F value = M::spread(left + r * a.row);
#pragma GCC unroll 4
          for (int j = 0; j < N; ++j) sums[r][j] = M::multiply_add(sums[r][j], value, column[j]);
        }
      }
      const bool onto = add || part > 0;
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          float* to = c.at + r * c.row + j * W;
          store(to, onto ? load(to) + sums[r][j] : sums[r][j]);
        }
    }
  }
}

// c of `rows` rows and `vectors` vectors, depth in units. Rows come in whole tiles: up to a multiple of kTileSums rows
// of a are read and of c are written.
template <class M>
inline void product(Sums c, Left a, Right b, int64_t rows, int64_t vectors, int64_t depth, bool add) {
  const int64_t groups = (vectors + kTileVectors - 1) / kTileVectors;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * vectors / groups;
    const Sums cg = {c.at + first * W, c.row};
    const Right bg = {b.at + first * b.panel, b.panel};
    switch ((g + 1) * vectors / groups - first) {
      case 1: product_columns<M, 1>(cg, a, bg, rows, depth, add); break;
      case 2: product_columns<M, 2>(cg, a, bg, rows, depth, add); break;
      case 3: product_columns<M, 3>(cg, a, bg, rows, depth, add); break;
      case 4: product_columns<M, 4>(cg, a, bg, rows, depth, add); break;
    }
  }
}

// W units of a row along its d elements, from unit `first` on.
template <class M, class T>
inline F load_units(const T* row, int64_t first, int64_t d) {
  const int64_t left = d - first * M::kDepth;
  if constexpr (M::kDepth == 1) {
    return left >= W ? load(row + first) : load(row + first, left);
  } else {
    if (left >= 2 * W) return raw_load<F>(row + 2 * first);
    F pairs = {};
    std::memcpy(&pairs, row + 2 * first, left * sizeof(T));
    return pairs;
  }
}

// The `count` rows of d elements at `from`, `stride` apart, in the three forms a product takes them.
template <class T>
struct Rows {
  const T* from;
  int64_t stride, count, d;
};

// For a left operand with k along d: unit (r, k) at out + r * units(d) rounded up to vectors. Zeros follow the last row
// up to whole tiles.
template <class M, class T>
inline Left pack_left(Rows<T> m, float* out) {
  const int64_t width = vector_count(units<M>(m.d)) * W, rows = round_up(m.count, kTileSums);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < width; k += W)
      store(out + r * width + k, r < m.count ? load_units<M>(m.from + r * m.stride, k, m.d) : F{});
  return {out, width, 1};
}

// For a right operand with k along d: j is the row.
template <class M, class T>
inline Right pack_transposed(Rows<T> m, float* out) {
  const int64_t depth = units<M>(m.d);
  for (int64_t first = 0; first < m.count; first += W)
    for (int64_t k = 0; k < depth; k += W) {
      F tile[W];
      for (int64_t i = 0; i < W; ++i)
        tile[i] = first + i < m.count ? load_units<M>(m.from + (first + i) * m.stride, k, m.d) : F{};
      transpose(tile);
      for (int64_t i = 0; i < std::min(W, depth - k); ++i) store(out + (first / W * depth + k + i) * W, tile[i]);
    }
  return {out, depth * W};
}

// For a right operand with k along the rows: j is along d.
template <class M, class T>
inline Right pack_right(Rows<T> m, float* out) {
  const int64_t depth = units<M>(m.count);
  for (int64_t k = 0; k < depth; ++k)
    sweep(m.d, [&](int64_t j, auto lanes) {
      const T* row = m.from + k * M::kDepth * m.stride + j;
      float* to = out + (j / W * depth + k) * W;
      if constexpr (M::kDepth == 1) {
        store(to, load(row, lanes));
      } else {
        const U first = (U)load(row, lanes) >> 16;
        const U second = 2 * k + 1 < m.count ? (U)load(row + m.stride, lanes) : U{};
        store(to, (F)(first | second));
      }
    });
  return {out, depth * W};
}

// Arrays of floats in one allocation, each on a cache line of its own, all 0. `list` is called twice, to measure and to
// hand out, and calls its argument with a pointer to set and a size for each array. One allocation, because the system
// takes many small ones back at the end of every call, and pages cost more than a small head's arithmetic.
class Arrays {
 public:
  template <class List>
  explicit Arrays(List&& list) {
    int64_t size = 0;
    list([&](float*&, int64_t n) { size += round_up(n, kLine); });
    memory_.reset(static_cast<float*>(::operator new(size * sizeof(float), kAlignment)));
    std::fill_n(memory_.get(), size, 0.f);
    float* next = memory_.get();
    list([&](float*& array, int64_t n) {
      array = next;
      next += round_up(n, kLine);
    });
  }

 private:
  static constexpr int64_t kLine = 16;
  static constexpr std::align_val_t kAlignment{kLine * sizeof(float)};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<float, Free> memory_;
};

}  // namespace dit::DIT_ISA
