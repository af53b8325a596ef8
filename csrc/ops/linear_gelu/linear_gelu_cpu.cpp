// SPDX-License-Identifier: Apache-2.0
//   u = x weight^T + bias,   y = u  or  gelu(u) = u s,   s = sigmoid(2z),   z = sqrt(2/pi) (u + 0.044715 u^3)
//   du = dy (s + u s (1 - s) 2z'),   dbias = sum of du over rows
// All arithmetic is float32; bias and GELU, or its gradient, act on the sums before they are rounded.
//
// Many rows: a work item is a block of 32 columns of a span of rows. Of a run of items at most kGroup panels of 2W
// columns are made of the weight at a time, in a thread's own room (they would cost more as one large array, in pages
// and in cache). A chunk of x then passes over them, kDepth of K at a time: that part of it, of the panels and of their
// sums stay in the second-level cache, with room for the next chunk's that is being fetched; a panel's part stays in the
// first. Every element is summed in the same order, whoever computes it: K in parts of equal length, at most kDepth each.
// Few rows: a work item is a block of 32 rows of the weight, which are read once, in the order they lie in memory.
#include "ops/linear_gelu/linear_gelu.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include "common/cpu/exp.h"
#include "common/cpu/panels.h"
#include "common/cpu/products.h"
#include "common/token_sums.h"

namespace dit::DIT_ISA {
namespace {

constexpr int64_t kCols = 2 * W, kRows = kTileSums / 2, kDepth = 384, kChunk = 48;
constexpr int64_t kGroup = kLinearRun * kLinearBlock / kCols;
static_assert(kChunk % kRows == 0, "tiles fill a chunk");
static_assert(kLinearBlock % kCols == 0 && kLinearBlock == kPanelPadding, "panels fill a block");

// Calls f with a null pointer of the element type and the epilogue, a constant.
template <class Function>
void dispatch(const Linear& a, Function&& f) {
  dit::dispatch(a.dtype, [&](auto* type) {
    switch (a.epilogue) {
      case Epilogue::none: return f(type, std::integral_constant<Epilogue, Epilogue::none>{});
      case Epilogue::gelu: return f(type, std::integral_constant<Epilogue, Epilogue::gelu>{});
      case Epilogue::gelu_kept: return f(type, std::integral_constant<Epilogue, Epilogue::gelu_kept>{});
      case Epilogue::gelu_gradient: return f(type, std::integral_constant<Epilogue, Epilogue::gelu_gradient>{});
    }
  });
}

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

// u s. Where exp gives infinity, u below -10, s is 0; where 2z is above 87, s is 1 anyway.
inline F gelu(const Exp& exp, F u) {
  const F z2 = u * (splat(-1.5957691216057308f) - splat(0.07135481627f) * (u * u));  // -2z
  const F some = (z2 < splat(89.f)) ? z2 : splat(89.f);
  return u / (splat(1.f) + exp.within((some > splat(-87.f)) ? some : splat(-87.f)));
}

// dy (s + u s (1 - s) 2z'), and gelu(u) = u s
struct Gradient {
  F du, y;
  Gradient(const Exp& exp, F dy, F u) {
    const Gate gate(exp, u);
    const F slope = splat(1.5957691216057308f) + splat(3 * 0.07135481627f) * (u * u);  // 2z'
    du = dy * (gate.s + u * gate.slope * slope);
    y = u * gate.s;
  }
};

// Writes what becomes of a vector of sums, as `Epilogue` says; returns their share of dbias.
template <Epilogue kEpilogue, class T, class Lanes>
inline F finish(const Linear& a, const Exp& exp, F sums, int64_t place, Lanes lanes) {
  T* y = static_cast<T*>(a.y) + place;
  if constexpr (kEpilogue == Epilogue::gelu_gradient) {
    const Gradient g(exp, sums, load(static_cast<const T*>(a.u) + place, lanes));
    store(y, g.du, lanes);
    store(static_cast<T*>(a.activated) + place, g.y, lanes);
    return g.du;
  } else {
    if constexpr (kEpilogue == Epilogue::gelu_kept) store(static_cast<T*>(a.u) + place, sums, lanes);
    store(y, kEpilogue == Epilogue::none ? sums : gelu(exp, sums), lanes);
    return F{};
  }
}

// The same for `rows` of a tile (kRows, kCols) of sums, the first of them at (row, column).
template <Epilogue kEpilogue, class T>
inline void finish_tile(const Linear& a, const Exp& exp, const float* sums, int64_t row, int64_t rows, int64_t column,
                        float* dbias) {
  const T* bias = a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
  const int64_t columns = std::min(kCols, a.outputs - column);
  if (columns == kCols) {
    const F bias0 = bias ? load(bias) : F{}, bias1 = bias ? load(bias + W) : F{};
    F total0 = {}, total1 = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t place = (row + r) * a.outputs + column;
      total0 += finish<kEpilogue, T>(a, exp, load(sums + r * kCols) + bias0, place, Full{});
      total1 += finish<kEpilogue, T>(a, exp, load(sums + r * kCols + W) + bias1, place + W, Full{});
    }
    if constexpr (kEpilogue == Epilogue::gelu_gradient) {
      store(dbias + column, load(dbias + column) + total0);
      store(dbias + column + W, load(dbias + column + W) + total1);
    }
    return;
  }
  sweep(columns, [&](int64_t i, auto lanes) {
    const F some = bias ? load(bias + i, lanes) : F{};
    F total = {};
    for (int64_t r = 0; r < rows; ++r)
      total += finish<kEpilogue, T>(a, exp, load(sums + r * kCols + i, lanes) + some,
                                    (row + r) * a.outputs + column + i, lanes);
    if constexpr (kEpilogue == Epilogue::gelu_gradient)
      store(dbias + column + i, load(dbias + column + i, lanes) + total, lanes);
  });
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

// What a thread keeps beside its operands: panels of the weight, their sums, and x where it is not float32.
struct Room {
  explicit Room(int64_t inputs) : panels(new float[kGroup * kCols * inputs]) {}
  std::unique_ptr<float[]> panels, sums{new float[kGroup * kChunk * kCols]}, x;
};

// The rows of one chunk, from `start` on, times the panels in the room, those of the columns from `first` on.
template <Epilogue kEpilogue, class T>
void chunk_of_linear(const Linear& a, const Exp& exp, Room& room, int64_t start, int64_t rows, int64_t first,
                     int64_t panels, float* dbias) {
  const int64_t k = a.inputs;
  const int64_t parts = std::max<int64_t>(1, (k + kDepth - 1) / kDepth);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = part * k / parts, depth = (part + 1) * k / parts - from;
    const T* own = static_cast<const T*>(a.x) + start * k + from;
    const float* x;
    int64_t stride = k;
    if constexpr (std::is_same_v<T, float>) {
      x = own;
    } else {
      if (!room.x) room.x.reset(new float[kChunk * kDepth]);
      for (int64_t r = 0; r < rows; ++r)
        sweep(depth, [&](int64_t i, auto lanes) {
          store(room.x.get() + r * depth + i, load(own + r * k + i, lanes), lanes);
        });
      x = room.x.get();
      stride = depth;
    }
    const bool last = part + 1 == parts;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t r = 0; r < rows; r += kRows) {
        float* sums = room.sums.get() + (p * kChunk + r) * kCols;
        const int64_t count = std::min(kRows, rows - r), column = first + p * kCols;
        multiply(sums, x + r * stride, stride, count, room.panels.get() + (p * k + from) * kCols, depth, part > 0);
        if (last) finish_tile<kEpilogue, T>(a, exp, sums, start + r, count, column, dbias);
      }
  }
}

constexpr int64_t kFewRows = 4, kFewOutputs = W / kFewRows;  // together W sums, which one transpose adds up

// kFewRows rows of x times kFewOutputs rows of the weight; rows and outputs past the last repeat it.
template <class T>
F few(const Linear& a, int64_t row, int64_t output) {
  const int64_t k = a.inputs;
  const T *x[kFewRows], *weight[kFewOutputs];
  for (int64_t r = 0; r < kFewRows; ++r) x[r] = static_cast<const T*>(a.x) + std::min(row + r, a.rows - 1) * k;
  for (int64_t f = 0; f < kFewOutputs; ++f)
    weight[f] = static_cast<const T*>(a.weight) + std::min(output + f, a.outputs - 1) * k;
  F c[W] = {};
  sweep(k, [&](int64_t i, auto lanes) {
    F w[kFewOutputs];
#pragma GCC unroll 4
    for (int64_t f = 0; f < kFewOutputs; ++f) w[f] = load(weight[f] + i, lanes);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kFewRows; ++r) {
      const F value = load(x[r] + i, lanes);
#pragma GCC unroll 4
      for (int64_t f = 0; f < kFewOutputs; ++f) c[r * kFewOutputs + f] += value * w[f];
    }
  });
  transpose(c);
  F total = c[0];
  for (int64_t i = 1; i < W; ++i) total += c[i];
  return total;
}

}  // namespace

void linear(const Linear& a, int64_t begin, int64_t end) {
  dispatch(a, [&](auto* type, auto epilogue) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr Epilogue kEpilogue = epilogue;
    const Exp exp(1.f);
    Room room(a.inputs);
    for (int64_t item = begin; item < end;) {
      const int64_t span = item / a.blocks(), block = item % a.blocks();
      const int64_t count = std::min({a.blocks() - block, end - item, kLinearRun});
      const int64_t first = block * kLinearBlock, columns = std::min(count * kLinearBlock, a.outputs - first);
      const T* weight = static_cast<const T*>(a.weight) + first * a.output_step;
      pack_panels({weight, room.panels.get(), a.inputs, columns, a.input_step, a.output_step, a.dtype}, 0, count);
      float* dbias = nullptr;
      if constexpr (kEpilogue == Epilogue::gelu_gradient) {
        dbias = a.partial + span * a.outputs;
        std::fill(dbias + first, dbias + first + columns, 0.f);
      }
      const int64_t last = a.span_begin(span + 1);
      for (int64_t row = a.span_begin(span); row < last; row += kChunk)
        chunk_of_linear<kEpilogue, T>(a, exp, room, row, std::min(kChunk, last - row), first,
                                      (columns + kCols - 1) / kCols, dbias);
      item += count;
    }
  });
}

void linear_few_rows(const Linear& a, int64_t begin, int64_t end) {
  dispatch(a, [&](auto* type, auto epilogue) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Exp exp(1.f);
    float sums[kLinearFewRows * kLinearBlock];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kLinearBlock, columns = std::min(kLinearBlock, a.outputs - first);
      for (int64_t f = 0; f < columns; f += kFewOutputs)
        for (int64_t row = 0; row < a.rows; row += kFewRows) {
          const F total = few<T>(a, row, first + f);
          for (int64_t i = 0; i < W; ++i)
            sums[(row + i / kFewOutputs) * kLinearBlock + f + i % kFewOutputs] = total[i];
        }
      sweep(columns, [&](int64_t i, auto lanes) {
        const F bias = a.bias ? load(static_cast<const T*>(a.bias) + first + i, lanes) : F{};
        for (int64_t row = 0; row < a.rows; ++row)
          finish<epilogue, T>(a, exp, load(sums + row * kLinearBlock + i, lanes) + bias, row * a.outputs + first + i,
                              lanes);
      });
    }
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
          const F gradient = Gradient(exp, load(dy + i, lanes), load(u + i, lanes)).du;
          store(du + i, gradient, lanes);
          store(dbias + i, load(dbias + i, lanes) + gradient, lanes);
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
