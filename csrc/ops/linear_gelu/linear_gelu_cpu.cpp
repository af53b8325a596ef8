// SPDX-License-Identifier: Apache-2.0
//   u = x weight^T + bias,   y = u  or  gelu(u) = u s,   s = sigmoid(2z),   z = sqrt(2/pi) (u + 0.044715 u^3)
//   du = dy (s + u s (1 - s) 2z'),   dbias = sum of du over rows
// All arithmetic is float32; bias and GELU act on the sums before they are rounded.
//
// Many rows: the weight comes as panels of 2 W columns. A work item is a block of 32 columns of a chunk of rows; of a
// run of items at most kGroup panels are done together, kDepth of K at a time, so that a part of the chunk of x (192 x
// 384 floats) stays in the second-level cache and a panel's part (384 x 2W) in the first. Their sums are kept beside.
// Every element is summed in the same order, whoever computes it: K in parts of equal length, at most kDepth each.
// Few rows: a work item is two rows of the weight, which are read once, in the order they lie in memory.
#include "ops/linear_gelu/linear_gelu.h"

#include <algorithm>
#include <memory>

#include "common/cpu/exp.h"
#include "common/cpu/products.h"
#include "common/token_sums.h"

namespace dit::DIT_ISA {
namespace {

constexpr int64_t kCols = 2 * W, kRows = kTileSums / 2, kDepth = 384, kBlock = 32, kGroup = 128 / kCols;
static_assert(kLinearChunk % kRows == 0 && kBlock % kCols == 0, "tiles fill a chunk, panels fill a block");

// s and s (1 - s). With exp(-|2z|) nothing overflows, and no digit is lost far below zero, where 1 + tanh(z) cancels.
struct Gate {
  F s, slope;
  Gate(const Exp& exp, F u) {
    const F z2 = u * (splat(1.5957691216057308f) + splat(0.07135481627f) * (u * u));
    const F e = exp((z2 < 0) ? z2 : -z2), part = splat(1.f) / (splat(1.f) + e);
    s = (z2 < 0) ? e * part : part;
    slope = e * part * part;
  }
};

// Writes u, where it is kept, and y for a vector of sums.
template <class T, class Lanes>
inline void finish(const Linear& a, const Exp& exp, F sums, int64_t row, int64_t column, Lanes lanes) {
  const int64_t place = row * a.outputs + column;
  if (a.bias) sums += load(static_cast<const T*>(a.bias) + column, lanes);
  if (a.u) store(static_cast<T*>(a.u) + place, sums, lanes);
  if (a.gelu) {
    const Gate gate(exp, sums);
    sums = sums * gate.s;
  }
  store(static_cast<T*>(a.y) + place, sums, lanes);
}

// sums (kRows, kCols) = or += x[0..rows) of `depth` columns times a panel. Rows past the last repeat it. Not inlined:
// in the middle of a larger function GCC spills the sums.
__attribute__((noinline)) void multiply(float* sums, const float* x, int64_t stride, int64_t rows, const float* panel,
                                        int64_t depth, bool onto) {
  const float* at[kRows];
#pragma GCC unroll 12
  for (int64_t r = 0; r < kRows; ++r) at[r] = x + std::min(r, rows - 1) * stride;
  F c[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, panel += kCols) {
    const F b0 = load(panel), b1 = load(panel + W);
#pragma GCC unroll 12
    for (int64_t r = 0; r < kRows; ++r) {
      const F value = splat(at[r][k]);
      c[r][0] += value * b0;
      c[r][1] += value * b1;
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < 2; ++v) {
      float* to = sums + r * kCols + v * W;
      store(to, onto ? load(to) + c[r][v] : c[r][v]);
    }
}

// What a thread keeps beside its operands.
struct Room {
  std::unique_ptr<float[]> sums{new float[kGroup * kLinearChunk * kCols]}, floats;
};

// Panels first..last of the rows of one chunk.
template <class T>
void chunk_of_linear(const Linear& a, const Exp& exp, Room& room, int64_t chunk, int64_t first, int64_t last) {
  const int64_t start = chunk * kLinearChunk, rows = std::min(kLinearChunk, a.rows - start), k = a.inputs;
  const int64_t parts = std::max<int64_t>(1, (k + kDepth - 1) / kDepth);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = part * k / parts, depth = (part + 1) * k / parts - from;
    const T* own = static_cast<const T*>(a.x) + start * k + from;
    const float* x;
    int64_t stride = k;
    if constexpr (std::is_same_v<T, float>) {
      x = own;
    } else {
      if (!room.floats) room.floats.reset(new float[kLinearChunk * kDepth]);
      for (int64_t r = 0; r < rows; ++r)
        sweep(depth, [&](int64_t i, auto lanes) {
          store(room.floats.get() + r * depth + i, load(own + r * k + i, lanes), lanes);
        });
      x = room.floats.get();
      stride = depth;
    }
    for (int64_t p = first; p < last; ++p)
      for (int64_t r = 0; r < rows; r += kRows) {
        float* sums = room.sums.get() + ((p - first) * kLinearChunk + r) * kCols;
        const int64_t count = std::min(kRows, rows - r);
        multiply(sums, x + r * stride, stride, count, a.panels + (p * k + from) * kCols, depth, part > 0);
        if (part + 1 < parts) continue;
        for (int64_t i = 0; i < count; ++i)
          sweep(std::min(kCols, a.outputs - p * kCols), [&](int64_t j, auto lanes) {
            finish<T>(a, exp, load(sums + i * kCols + j), start + r + i, p * kCols + j, lanes);
          });
      }
  }
}

// Four rows of x (or fewer: the last one is repeated) times two rows of the weight.
template <class T>
void few_rows(const Linear& a, const Exp& exp, int64_t row, int64_t output) {
  const int64_t k = a.inputs, rows = std::min<int64_t>(4, a.rows - row);
  const int64_t outputs = std::min<int64_t>(2, a.outputs - output);
  const T* x[4];
  const T* w[2];
  for (int64_t r = 0; r < 4; ++r) x[r] = static_cast<const T*>(a.x) + (row + std::min(r, rows - 1)) * k;
  for (int64_t f = 0; f < 2; ++f) w[f] = static_cast<const T*>(a.weight) + (output + std::min(f, outputs - 1)) * k;
  F c[4][2] = {};
  sweep(k, [&](int64_t i, auto lanes) {
    const F w0 = load(w[0] + i, lanes), w1 = load(w[1] + i, lanes);
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; ++r) {
      const F value = load(x[r] + i, lanes);
      c[r][0] += value * w0;
      c[r][1] += value * w1;
    }
  });
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < outputs; ++f) finish<T>(a, exp, splat(sum(c[r][f])), row + r, output + f, int64_t(1));
}

}  // namespace

void linear(const Linear& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Exp exp(1.f);
    Room room;
    const int64_t panels = (a.outputs + kCols - 1) / kCols, blocks = (a.outputs + kBlock - 1) / kBlock;
    for (int64_t item = begin; item < end;) {
      const int64_t chunk = item / blocks, block = item % blocks, count = std::min(blocks - block, end - item);
      const int64_t last = std::min(panels, (block + count) * (kBlock / kCols));
      for (int64_t p = block * (kBlock / kCols); p < last; p += kGroup)
        chunk_of_linear<T>(a, exp, room, chunk, p, std::min(last, p + kGroup));
      item += count;
    }
  });
}

void linear_few_rows(const Linear& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Exp exp(1.f);
    for (int64_t pair = begin; pair < end; ++pair)
      for (int64_t row = 0; row < a.rows; row += 4) few_rows<T>(a, exp, row, 2 * pair);
  });
}

void gelu_backward(const GeluBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Exp exp(1.f);
    const int64_t f = a.outputs;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float* dbias = a.partial + chunk * f;
      std::fill(dbias, dbias + f, 0.f);
      for (int64_t r = chunk * kCpuChunk; r < std::min((chunk + 1) * kCpuChunk, a.rows); ++r) {
        const T *u = static_cast<const T*>(a.u) + r * f, *dy = static_cast<const T*>(a.dy) + r * f;
        T* du = static_cast<T*>(a.du) + r * f;
        sweep(f, [&](int64_t i, auto lanes) {
          const F value = load(u + i, lanes);
          const Gate gate(exp, value);
          const F z2 = splat(1.5957691216057308f) + splat(3 * 0.07135481627f) * (value * value);  // 2z'
          const F gradient = load(dy + i, lanes) * (gate.s + value * gate.slope * z2);
          store(du + i, gradient, lanes);
          store(dbias + i, load(dbias + i, lanes) + gradient, lanes);
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
