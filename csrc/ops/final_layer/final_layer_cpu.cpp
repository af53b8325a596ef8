// SPDX-License-Identifier: Apache-2.0
//   h = xhat * (1 + scale) + shift,   xhat = (x - mean) * rstd,   y = h weight^T + bias,   y laid out as an image
//   dh = dy weight,   dweight = sum_NT dy^T h,   dbias = sum_NT dy,   dshift = sum_T dh,   dscale = sum_T dh * xhat
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)
//
// Forward: h of 6 tokens is made in a float32 buffer and multiplied by the panels of weight^T (tile.h); y goes from
// registers to the image. A weight too large for the cache is swept once for 24 tokens.
// Backward: the tokens of a sample are cut into pieces of kFinalPiece. A piece gathers dy, makes dh tile by tile (6 or
// 24 rows), from it dx and the piece's sums for dshift and dscale, and leaves dy and h in a room of kFinalPiece rows.
// When the next piece would not fit (short samples share a room), the room's dweight += dy^T h and dbias += dy are
// taken. These sums belong to a group of consecutive pieces and are added in order of groups at the end; pieces and
// groups depend on shapes only. All arithmetic float32; each result is rounded once.
#include "ops/final_layer/final_layer.h"

#include <vector>

#include "common/cpu/layernorm.h"
#include "common/cpu/tile.h"

namespace dit::DIT_ISA {

namespace {

// Rows of a float buffer are this far apart, so that those of D = 1024 do not all fall into the same cache lines.
int64_t padded(int64_t d) { return panel_count(d) * kTileCols + 16; }

template <class T>
void widen_row(const T* from, float* to, int64_t d) {
  sweep(d, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
}

// h of `count` tokens from token `first` on.
template <class T>
void modulated_rows(const FinalLayerForward& a, int64_t first, int64_t count, float* h) {
  const int64_t d = a.dim;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = first + r, n = token / a.grid.tokens();
    const T* x = static_cast<const T*>(a.x) + token * d;
    float* row = h + r * padded(d);
    if (!a.scale) {
      widen_row(x, row, d);
      continue;
    }
    const Stats s = row_stats(x, d, a.eps);
    a.mean[token] = s.mean;
    a.rstd[token] = s.rstd;
    row_modulate(x, static_cast<const T*>(a.shift) + n * a.shift_stride,
                 static_cast<const T*>(a.scale) + n * a.scale_stride, row, d, s);
  }
}

// What the backward of a group works in. dy's features past O are zero; its last rows let a tile end past the others.
struct Room {
  int64_t features, stride;  // O, and O rounded up to whole tiles
  std::vector<int64_t> offsets;
  std::vector<float> dy;  // (kFinalPiece + kTileRows, stride)
  std::vector<float> h;   // (kFinalPiece, padded D)
  int64_t sweep_tiles;
  std::vector<float> dh;  // (sweep_tiles * kTileRows, padded D)
  int64_t filled = 0;     // rows of dy and h

  explicit Room(const FinalLayerBackward& a)
      : features(a.grid.pixels()), stride(tile_count(features) * kTileRows), offsets(a.grid.offsets(true)),
        dy((kFinalPiece + kTileRows) * stride), h(kFinalPiece * padded(a.dim)),
        sweep_tiles(tiles_per_sweep(features, a.dim)), dh(sweep_tiles * kTileRows * padded(a.dim)) {}
};

// dy of `count` tokens from the image, behind the rows filled already.
template <class T>
void gather_dy(const FinalLayerBackward& a, Room& room, int64_t first, int64_t count) {
  for (int64_t t = 0; t < count; ++t) {
    const T* corner = static_cast<const T*>(a.dout) + a.grid.corner(first + t);
    float* row = &room.dy[(room.filled + t) * room.stride];
    for (int64_t o = 0; o < room.features; ++o) row[o] = to_f32(corner[room.offsets[o]]);
  }
}

// dx and h of one token, and its share of the sums for dshift and dscale, from its row of dh.
template <class T>
void token_gradient(const FinalLayerBackward& a, int64_t token, const float* dh, float* h, float* sums) {
  const int64_t d = a.dim, n = token / a.grid.tokens();
  const T* x = static_cast<const T*>(a.x) + token * d;
  T* dx = static_cast<T*>(a.dx) + token * d;
  if (!a.scale) {
    widen_row(x, h, d);
    sweep(d, [&](int64_t i, auto lanes) { store(dx + i, load(dh + i, lanes), lanes); });
    return;
  }
  const T* scale = static_cast<const T*>(a.scale) + n * a.scale_stride;
  const Stats s = {a.mean[token], a.rstd[token]};
  row_modulate(x, static_cast<const T*>(a.shift) + n * a.shift_stride, scale, h, d, s);
  const auto [mean_g, mean_gx] = row_grad_sums(dh, x, scale, s, sums, sums + d, d);
  row_grad(dh, x, scale, s, mean_g, mean_gx, d, [&](int64_t i, F v, auto lanes) { store(dx + i, v, lanes); });
}

// dh = dy weight for the tiles of a piece, each sweep's rows handed on to token_gradient.
template <class T>
void token_gradients(const FinalLayerBackward& a, Room& room, int64_t first, int64_t count, float* sums) {
  const int64_t d = a.dim, ld = padded(d), tiles = tile_count(count);
  if (a.scale) std::fill(sums, sums + 2 * d, 0.f);
  for (int64_t tile = 0; tile < tiles; tile += room.sweep_tiles) {
    const int64_t last = std::min(tile + room.sweep_tiles, tiles);
    for (int64_t d0 = 0; d0 < d; d0 += kTileCols)
      for (int64_t i = tile; i < last; ++i) {
        Tile c = {};
        multiply(c, &room.dy[(room.filled + i * kTileRows) * room.stride], room.stride, 1,
                 static_cast<const float*>(a.weight) + d0 * room.features, kTileCols, room.features);
        for (int64_t r = 0; r < kTileRows; ++r) {
          float* row = &room.dh[((i - tile) * kTileRows + r) * ld + d0];
          store(row, c.v[r][0]);
          store(row + W, c.v[r][1]);
        }
      }
    for (int64_t t = tile * kTileRows; t < std::min(last * kTileRows, count); ++t)
      token_gradient<T>(a, first + t, &room.dh[(t - tile * kTileRows) * ld], &room.h[(room.filled + t) * ld], sums);
  }
}

// The group's rows of weight_sums (O, groups, D) += dy^T h, or = if they are fresh.
void add_weight_sums(const FinalLayerBackward& a, const Room& room, int64_t group, bool fresh) {
  const int64_t d = a.dim, ld = padded(d);
  for (int64_t d0 = 0; d0 < d; d0 += kTileCols)
    for (int64_t o0 = 0; o0 < room.features; o0 += kTileRows) {
      Tile c = {};
      multiply(c, &room.dy[o0], 1, room.stride, &room.h[d0], ld, room.filled);
      tile_columns(d0, d, [&](int64_t v, int64_t column, auto lanes) {
        for (int64_t r = 0; r < std::min(kTileRows, room.features - o0); ++r) {
          float* sum = a.weight_sums + ((o0 + r) * a.groups + group) * d + column;
          store(sum, fresh ? c.v[r][v] : load(sum, lanes) + c.v[r][v], lanes);
        }
      });
    }
}

// bias_sums += sum over tokens of dy, which is folded in halves and so used up.
void add_bias_sums(Room& room, float* bias_sums) {
  for (int64_t count = room.filled; count > 1; count -= count / 2)
    for (int64_t t = 0; t < count / 2; ++t) {
      float *to = &room.dy[t * room.stride], *from = &room.dy[(count - 1 - t) * room.stride];
      for (int64_t o = 0; o < room.features; ++o) to[o] += from[o];
    }
  for (int64_t o = 0; o < room.features; ++o) bias_sums[o] += room.dy[o];
}

}  // namespace

void final_layer_forward(const FinalLayerForward& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, features = a.grid.pixels(), sweep_tiles = tiles_per_sweep(d, features);
  const int64_t tokens = a.batch * a.grid.tokens();
  const std::vector<int64_t> offsets = a.grid.offsets(true);
  std::vector<float> h(sweep_tiles * kTileRows * padded(d));
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* bias = static_cast<const T*>(a.bias);
    for (int64_t tile = begin; tile < end; tile += sweep_tiles) {
      const int64_t first = tile * kTileRows, last = std::min(std::min(tile + sweep_tiles, end) * kTileRows, tokens);
      modulated_rows<T>(a, first, last - first, h.data());
      for (int64_t o0 = 0; o0 < features; o0 += kTileCols)
        for (int64_t t0 = first; t0 < last; t0 += kTileRows) {
          Tile c = {};
          multiply(c, &h[(t0 - first) * padded(d)], padded(d), 1, static_cast<const float*>(a.weight) + o0 * d,
                   kTileCols, d);
          tile_columns(o0, features, [&](int64_t v, int64_t o, auto lanes) {
            const F b = load(bias + o, lanes);
            for (int64_t r = 0; r < std::min(kTileRows, last - t0); ++r) {
              T* corner = static_cast<T*>(a.out) + a.grid.corner(t0 + r);
              T room[W];
              store(room, c.v[r][v] + b);
              for (int64_t j = 0; j < int64_t(lanes); ++j) corner[offsets[o + j]] = room[j];
            }
          });
        }
    }
  });
}

void final_layer_backward(const FinalLayerBackward& a, int64_t begin, int64_t end) {
  Room room(a);
  const int64_t tokens = a.grid.tokens(), all = a.batch * a.pieces;
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t group = begin; group < end; ++group) {
      float* bias_sums = a.bias_sums + group * room.features;
      std::fill(bias_sums, bias_sums + room.features, 0.f);
      bool fresh = true;
      const auto empty_room = [&] {
        add_weight_sums(a, room, group, fresh);
        add_bias_sums(room, bias_sums);
        fresh = false;
        room.filled = 0;
      };
      const int64_t start = group * all / a.groups, stop = (group + 1) * all / a.groups;
      for (int64_t item = start; item < stop; ++item) {
        const int64_t n = item / a.pieces, from = item % a.pieces * kFinalPiece;
        const int64_t first = n * tokens + from, count = std::min(kFinalPiece, tokens - from);
        if (room.filled + count > kFinalPiece) empty_room();
        gather_dy<T>(a, room, first, count);
        token_gradients<T>(a, room, first, count, a.token_sums + item * 2 * a.dim);
        room.filled += count;
      }
      empty_room();
    }
  });
}

}  // namespace dit::DIT_ISA
