// SPDX-License-Identifier: Apache-2.0
//   out[n, t]  = weight patch(n, t) + bias + pos[t]
//   dweight    = sum_NT dout[n, t] patch(n, t)^T,   dbias = sum_NT dout[n, t],   dpos[t] = sum_N dout[n, t]
//   dpatch(n, t) = weight^T dout[n, t], written to where patch(n, t) lies in dx
//
// Forward: 6 patches at a time are gathered into (K, 6) floats and multiplied by one panel of weight^T after another
// (tile.h), so x, pos and out cross memory once. A weight too large for the cache is swept once for 24 patches.
// dweight: a chunk walks its tokens in blocks; patches (64, K + 1), whose last feature is 1 and so sums dbias, times a
// panel of dout in float32 are added to the chunk's own partial sums, and the chunks are added in order at the end.
// The number of chunks depends on shapes only. All arithmetic float32; each result is rounded once.
#include "ops/patch_embed/patch_embed.h"

#include <vector>

#include "common/cpu/tile.h"

namespace dit::DIT_ISA {

namespace {

// Patches of `count` tokens as to[pixel * pixel_step + token * token_step].
template <class T>
void gather(const T* x, const PatchGrid& grid, const std::vector<int64_t>& offsets, int64_t first, int64_t count,
            float* to, int64_t pixel_step, int64_t token_step) {
  for (int64_t r = 0; r < count; ++r) {
    const T* corner = x + grid.corner(first + r);
    float* patch = to + r * token_step;
    for (size_t k = 0; k < offsets.size(); ++k) patch[k * pixel_step] = to_f32(corner[offsets[k]]);
  }
}

}  // namespace

void patch_embed_forward(const PatchEmbedForward& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, k = a.grid.pixels(), sweep_tiles = tiles_per_sweep(k, d);
  const std::vector<int64_t> offsets = a.grid.offsets(false);
  std::vector<float> patches(sweep_tiles * kTileRows * k);  // (tiles, K, kTileRows)
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *bias = static_cast<const T*>(a.bias), *pos = static_cast<const T*>(a.pos);
    T* out = static_cast<T*>(a.out);
    for (int64_t tile = begin; tile < end; tile += sweep_tiles) {
      const int64_t tiles = std::min(sweep_tiles, end - tile);
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t first = (tile + i) * kTileRows, count = std::min(kTileRows, a.tokens - first);
        gather(static_cast<const T*>(a.x), a.grid, offsets, first, count, &patches[i * kTileRows * k], kTileRows, 1);
      }
      for (int64_t d0 = 0; d0 < d; d0 += kTileCols)
        for (int64_t i = 0; i < tiles; ++i) {
          Tile c = {};
          multiply(c, &patches[i * kTileRows * k], 1, kTileRows, a.panels + d0 * k, kTileCols, k);
          const int64_t first = (tile + i) * kTileRows, count = std::min(kTileRows, a.tokens - first);
          tile_columns(d0, d, [&](int64_t v, int64_t column, auto lanes) {
            const F b = bias ? load(bias + column, lanes) : F{};
            for (int64_t r = 0; r < count; ++r) {
              const int64_t t = (first + r) % a.grid.tokens();
              store(out + (first + r) * d + column, c.v[r][v] + b + load(pos + t * d + column, lanes), lanes);
            }
          });
        }
    }
  });
}

void patch_embed_weight_grad(const PatchEmbedWeightGrad& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, k = a.grid.pixels(), features = k + 1, tiles = tile_count(features);
  const int64_t stride = tiles * kTileRows;  // floats a patch: K pixels, 1, then zeros
  const std::vector<int64_t> offsets = a.grid.offsets(false);
  std::vector<float> patches(kPatchBlock * stride, 0.f), panel(kPatchBlock * kTileCols, 0.f);
  for (int64_t t = 0; t < kPatchBlock; ++t) patches[t * stride + k] = 1.f;
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *x = static_cast<const T*>(a.x), *dout = static_cast<const T*>(a.dout);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk * a.chunk, last = std::min(start + a.chunk, a.tokens);
      float* partial = a.partial + chunk * features * d;
      for (int64_t first = start; first < last; first += kPatchBlock) {
        const int64_t count = std::min(kPatchBlock, last - first);
        gather(x, a.grid, offsets, first, count, patches.data(), 1, stride);
        for (int64_t d0 = 0; d0 < d; d0 += kTileCols) {
          tile_columns(d0, d, [&](int64_t v, int64_t column, auto lanes) {
            for (int64_t t = 0; t < count; ++t)
              store(&panel[t * kTileCols + v * W], load(dout + (first + t) * d + column, lanes));
          });
          for (int64_t i = 0; i < tiles; ++i) {
            Tile c = {};
            multiply(c, &patches[i * kTileRows], 1, stride, panel.data(), kTileCols, count);
            tile_columns(d0, d, [&](int64_t v, int64_t column, auto lanes) {
              for (int64_t r = 0; r < std::min(kTileRows, features - i * kTileRows); ++r) {
                float* sum = partial + (i * kTileRows + r) * d + column;
                store(sum, first == start ? c.v[r][v] : load(sum, lanes) + c.v[r][v], lanes);
              }
            });
          }
        }
      }
    }
  });
}

void patch_embed_weight_sum(const PatchEmbedWeightSum& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, k = a.pixels;
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T *dweight = static_cast<T*>(a.dweight), *dbias = static_cast<T*>(a.dbias);
    const int64_t first = begin * kPanelPadding, last = std::min(end * kPanelPadding, d);
    sweep(last - first, [&](int64_t i, auto lanes) {
      const int64_t column = first + i;
      const auto total = [&](int64_t feature) {
        F sum = {};
        for (int64_t c = 0; c < a.chunks; ++c) sum += load(a.partial + (c * (k + 1) + feature) * d + column, lanes);
        return sum;
      };
      T room[W];
      for (int64_t feature = 0; dweight && feature < k; ++feature) {
        store(room, total(feature));
        for (int64_t j = 0; j < int64_t(lanes); ++j) dweight[(column + j) * k + feature] = room[j];
      }
      if (dbias) store(dbias + column, total(k), lanes);
    });
  });
}

void patch_embed_pos_grad(const PatchEmbedPosGrad& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim;
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t t = begin; t < end; ++t) {
      const T* from = static_cast<const T*>(a.dout) + t * d;
      sweep(d, [&](int64_t i, auto lanes) {
        F total = {};
        for (int64_t n = 0; n < a.batch; ++n) total += load(from + n * a.tokens * d + i, lanes);
        store(static_cast<T*>(a.dpos) + t * d + i, total, lanes);
      });
    }
  });
}

void patch_embed_image_grad(const PatchEmbedImageGrad& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, k = a.grid.pixels();
  const std::vector<int64_t> offsets = a.grid.offsets(false);
  std::vector<float> rows(kTileRows * d);
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* dx = static_cast<T*>(a.dx);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileRows, count = std::min(kTileRows, a.tokens - first);
      for (int64_t r = 0; r < count; ++r) {
        const T* from = static_cast<const T*>(a.dout) + (first + r) * d;
        sweep(d, [&](int64_t i, auto lanes) { store(&rows[r * d + i], load(from + i, lanes), lanes); });
      }
      for (int64_t k0 = 0; k0 < k; k0 += kTileCols) {
        Tile c = {};
        multiply(c, rows.data(), d, 1, a.panels + k0 * d, kTileCols, d);
        tile_columns(k0, k, [&](int64_t v, int64_t pixel, auto lanes) {
          T room[W];
          for (int64_t r = 0; r < count; ++r) {
            T* corner = dx + a.grid.corner(first + r);
            store(room, c.v[r][v]);
            for (int64_t j = 0; j < int64_t(lanes); ++j) corner[offsets[pixel + j]] = room[j];
          }
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
