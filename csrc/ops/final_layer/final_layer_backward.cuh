// SPDX-License-Identifier: Apache-2.0
// Backward kernels of final_layer; shapes and h as in final_layer.cuh, dy (N, T, O) the image's gradient
// dout (N, C, h*p, w*p) in the order of tokens and features.
//
//   dh = round(dy weight),   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)
//   dshift = sum_T dh,   dscale = sum_T dh * xhat,   dweight = sum_NT dy^T h,   dbias = sum_NT dy
//
// transpose_weight: weight (O, D) to (D, O rounded up to 32, zeros behind), so that dh multiplies by its rows.
// token kernel, grid (N * pieces): a block walks a piece of a sample's tokens, 16 * kTiles at a time: dy from the image
//   to shared memory; its warps share out D and put dh there, rounded to the storage dtype as eager PyTorch rounds it;
//   then threads as in rows.cuh make dx as adaln's backward does, from x, read once, and that dh. Writes dx and, per
//   piece, two rows of float32 sums that token_sums.cu finishes. Nothing of dh's size leaves the block.
// weight kernel, grid (O / 32, D / 128, groups): a block walks its group of the N * T tokens, makes h again for its 128
//   columns, and adds dy^T h of (32, 128) in registers. Writes float32 sums of dweight (O, groups, D) and, in the first
//   blocks along D, of dbias (groups, O); token_sums.cu finishes both in order of groups. The next tokens are on their
//   way from memory while the last ones are multiplied. Blocks of the same tokens and columns run side by side, so that
//   x comes from memory once and else from L2.
// Pieces and groups depend on shapes and the architecture only. All float32 but for the products of 16-bit types.
#pragma once
#include "ops/final_layer/final_layer.cuh"

namespace dit {

constexpr int kFinalTransposeTile = 32;

// Grid (D / 32, O / 32), block (32, 8).
template <class T>
__global__ void __launch_bounds__(256) transpose_weight_kernel(const T* weight, T* out, int64_t features, int64_t dim) {
  constexpr int kTile = kFinalTransposeTile;
  __shared__ T tile[kTile][kTile + 2];
  const int64_t o = int64_t(blockIdx.y) * kTile, d = int64_t(blockIdx.x) * kTile, pitch = int64_t(gridDim.y) * kTile;
  const int x = int(threadIdx.x);
  for (int y = int(threadIdx.y); y < kTile; y += 8)
    tile[y][x] = o + y < features && d + x < dim ? weight[(o + y) * dim + d + x] : from_float<T>(0.f);
  __syncthreads();
  for (int y = int(threadIdx.y); y < kTile && d + y < dim; y += 8) out[(d + y) * pitch + o + x] = tile[x][y];
}

// The token kernel's shared memory: dh, then dy.
template <class R>
struct FinalBackwardRoom {
  using T = typename R::T;
  static constexpr int kTokens = 16 * kFinalTiles<R>;

  // An odd number of 16-byte units: a warp's accumulators go to 32 banks.
  __host__ __device__ static constexpr int dh_pitch(int dim) {
    return ((dim * int(sizeof(T)) + 15) / 16 | 1) * 16 / int(sizeof(T));
  }
  __host__ __device__ static constexpr int dy_width(int features) { return (features + 31) / 32 * 32; }
  __host__ __device__ static constexpr int dy_at(int dim) { return kTokens * dh_pitch(dim); }  // in elements
  __host__ static constexpr int bytes(int dim, int features) {
    return (dy_at(dim) + kTokens * product_pitch<T>(dy_width(features))) * int(sizeof(T));
  }
};

// dy of tokens first .. last - 1 of a sample; zeros for those that do not exist, and for features past O.
template <class R>
DIT_DEVICE void gather_dy(const FinalLayerBackward& a, int64_t sample, int64_t first, int64_t last, typename R::T* dy,
                          int features) {
  using T = typename R::T;
  using Room = FinalBackwardRoom<R>;
  const int t = thread_in_block() % Room::kTokens, step = threads_of_block() / Room::kTokens;
  const int width = Room::dy_width(features), pitch = product_pitch<T>(width);
  const bool exists = first + t < last;
  const T* from = static_cast<const T*>(a.dout) + (exists ? patch_corner(a.grid, sample, int(first) + t) : 0);
  for (int o = thread_in_block() / Room::kTokens; o < width; o += step)
    dy[t * pitch + o] = exists && o < features ? from[patch_pixel(a.grid, o)] : from_float<T>(0.f);
}

template <class T>
DIT_DEVICE void store_pair(T* to, float first, float second) {
  if constexpr (is_half_type<T>) *reinterpret_cast<uint32_t*>(to) = pack<T>(first, second);
  else *reinterpret_cast<float2*>(to) = make_float2(first, second);
}

// dh = dy weight of kTokens tokens, all in shared memory but the weight. Warps take 16 columns of D in turn.
template <class R>
DIT_DEVICE void multiply_dy(const FinalLayerBackward& a, const typename R::T* dy, typename R::T* dh, int dim,
                            int features) {
  using T = typename R::T;
  using Room = FinalBackwardRoom<R>;
  constexpr int kTiles = kFinalTiles<R>, kColumns = 16;
  const int warps = threads_of_block() / 32, lane = thread_in_block() % 32;
  const int depth = Room::dy_width(features), pitch = Room::dh_pitch(dim);
  for (int first = thread_in_block() / 32 * kColumns; first < dim; first += warps * kColumns) {
    TileSums<16 * kTiles, kColumns> sums = {};
    const WeightRows<T> weight{static_cast<const T*>(a.weight) + int64_t(first) * depth, depth, dim - first};
    multiply_by_weight(sums, dy, product_pitch<T>(depth), weight, depth, 0, 1, lane);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int column = first + tile_column(j, 0, lane);
      if (column >= dim) continue;
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          store_pair(dh + tile_row(i, e, lane) * pitch + column, sums[i][j][e], sums[i][j][e + 1]);
    }
  }
}

// dx of `count` tokens from row `first_row` on, and their share of this thread's sums of dshift, dscale.
template <class R>
DIT_DEVICE void token_gradients(const FinalLayerBackward& a, const Place<R>& at, const typename R::T* dh,
                                const Vec<typename R::T>& scale, int64_t first_row, int count,
                                float (&sums)[2][kVec<typename R::T>]) {
  using T = typename R::T;
  constexpr int kRows = R::kDim == 0 ? 1 : 2;
  __shared__ SumRoom<2 * kRows, R::kHalfWarps> room;
  const int pitch = FinalBackwardRoom<R>::dh_pitch(at.dim);
  int turn = 0;
  for (int start = 0; start < count; start += kRows * at.groups) {
    Vec<T> grad[kRows], x[kRows];
    float mean[kRows], rstd[kRows], means[2 * kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = start + r * at.groups + at.group;
      const bool exists = t < count;
      grad[r] = exists && at.active ? load_vec(dh + t * pitch + at.column) : Vec<T>{};
      if (!a.scale) continue;
      x[r] = at.load(a.x, first_row + t, exists);
      mean[r] = exists ? a.mean[first_row + t] : 0.f;
      rstd[r] = exists ? a.rstd[first_row + t] : 0.f;
    }
    if (a.scale) norm_gradient_sums<R>(grad, x, mean, rstd, scale, at, room, turn, means, sums[0], sums[1]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = start + r * at.groups + at.group;
      if (a.scale) {
        float dx[kVec<T>];
        norm_gradient(grad[r], x[r], mean[r], rstd[r], means[2 * r], means[2 * r + 1], scale, dx);
        pack(dx, grad[r]);
      }
      at.store(a.dx, first_row + t, t < count, grad[r]);
    }
  }
}

template <class R>
__global__ void __launch_bounds__(kFinalThreads<R>, R::kMinBlocks) final_layer_token_kernel(FinalLayerBackward a) {
  using T = typename R::T;
  using Room = FinalBackwardRoom<R>;
  __shared__ GroupRoom<R> ends;
  const Place<R> at(a.dim);
  const int64_t tokens = a.grid.height * a.grid.width;
  const Chunk mine(a.piece, a.pieces, tokens);
  const int features = int(a.grid.channels * a.grid.patch * a.grid.patch);
  T* dh = dynamic_smem<T>();
  T* dy = dh + Room::dy_at(at.dim);
  const Vec<T> scale = a.scale ? at.modulation(a.scale, mine.sample, a.scale_stride) : Vec<T>{};
  float sums[2][kVec<T>] = {};  // of dshift, dscale
  for (int64_t first = mine.first; first < mine.last; first += Room::kTokens) {
    gather_dy<R>(a, mine.sample, first, mine.last, dy, features);
    __syncthreads();
    multiply_dy<R>(a, dy, dh, at.dim, features);
    __syncthreads();
    const int64_t left = mine.last - first;
    token_gradients<R>(a, at, dh, scale, mine.sample * tokens + first, int(left < Room::kTokens ? left : Room::kTokens),
                       sums);
  }
  if (a.scale) write_token_sums(a.token_sums, sums, ends, at);
}

// How the weight kernel maps tokens and columns to threads: a thread owns 16 bytes of columns, kRows tokens of a step.
template <class Element>
struct FinalWeightTile {
  using T = Element;
  static constexpr int kThreads = 256, kColumns = 128, kRows = 4;
  static constexpr int kLanes = kColumns / kVec<T>, kGroups = kThreads / kLanes;
  static constexpr int kTokens = kRows * kGroups;                         // of a step: 64, or 32 of 32 bits
  static constexpr int kDyRows = kFinalFeatures * kTokens / kThreads;     // features of a token that a thread gathers
  static constexpr int kHPitch = tile_pitch<T, kColumns>, kDyPitch = tile_pitch<T, kTokens>;

  struct Room {  // one of two: the next step fills one while slower warps still read the other
    alignas(16) T h[kTokens * kHPitch];
    alignas(16) T dy[kFinalFeatures * kDyPitch];
  };

  // What a thread brings from memory for a step.
  Vec<T> x[kRows];
  float mean[kRows], rstd[kRows];
  T dy[kDyRows];
};

// A token by its sample and its number there.
struct TokenPlace {
  int sample, token;

  DIT_DEVICE TokenPlace after(int count, int tokens) const {
    TokenPlace there{sample, token + count};
    for (; there.token >= tokens; there.token -= tokens) ++there.sample;
    return there;
  }
};

// `count` tokens from row `first` of x on, which is token `at`.
struct FinalStep {
  int64_t first;
  int count;
  TokenPlace at;
};

template <class Tile>
DIT_DEVICE void load_step(const FinalLayerBackward& a, Tile& mine, const FinalStep& step, int64_t column, int feature,
                          int features, const int (&pixel)[Tile::kDyRows]) {
  using T = typename Tile::T;
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    const int t = r * Tile::kGroups + int(threadIdx.x) / Tile::kLanes;
    const int64_t row = step.first + t;
    const bool exists = t < step.count;
    mine.x[r] = exists && column < a.dim ? load_vec(static_cast<const T*>(a.x) + row * a.dim + column) : Vec<T>{};
    mine.mean[r] = exists && a.scale ? a.mean[row] : 0.f;
    mine.rstd[r] = exists && a.scale ? a.rstd[row] : 0.f;
  }
  const int t = int(threadIdx.x) % Tile::kTokens;
  const TokenPlace place = step.at.after(t, int(a.grid.height * a.grid.width));
  const bool exists = t < step.count;
  const T* from = static_cast<const T*>(a.dout) + (exists ? patch_corner(a.grid, place.sample, place.token) : 0);
#pragma unroll
  for (int i = 0; i < Tile::kDyRows; ++i) {
    const bool wanted = exists && feature + i * (Tile::kThreads / Tile::kTokens) < features;
    mine.dy[i] = wanted ? from[pixel[i]] : from_float<T>(0.f);
  }
}

// h and dy of a step to shared memory. Rows of tokens that do not exist, and columns past D, are zero.
template <class Tile>
DIT_DEVICE void place_step(const FinalLayerBackward& a, const Tile& mine, const FinalStep& step, int64_t column,
                           typename Tile::Room& room) {
  using T = typename Tile::T;
  Vec<T> shift, scale;
  int sample = -1;  // theirs
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    const int t = r * Tile::kGroups + int(threadIdx.x) / Tile::kLanes;
    Vec<T> h = mine.x[r];
    if (a.scale && t < step.count && column < a.dim) {
      const int n = step.at.after(t, int(a.grid.height * a.grid.width)).sample;
      if (n != sample) {
        shift = load_vec(static_cast<const T*>(a.shift) + n * a.shift_stride + column);
        scale = load_vec(static_cast<const T*>(a.scale) + n * a.scale_stride + column);
        sample = n;
      }
      h = modulate(h, mine.mean[r], mine.rstd[r], shift, scale);
    }
    store_vec(room.h + t * Tile::kHPitch + int(threadIdx.x) % Tile::kLanes * kVec<T>, h);
  }
  const int t = int(threadIdx.x) % Tile::kTokens, o = int(threadIdx.x) / Tile::kTokens;
#pragma unroll
  for (int i = 0; i < Tile::kDyRows; ++i)
    room.dy[(o + i * (Tile::kThreads / Tile::kTokens)) * Tile::kDyPitch + t] = mine.dy[i];
}

// Adds the threads' sums of dy over tokens, those of the warps of a feature in order.
template <class Tile>
DIT_DEVICE void write_bias_sums(float* bias_sums, const float (&sums)[Tile::kDyRows], int features) {
  constexpr int kWarps = Tile::kTokens / 32, kStep = Tile::kThreads / Tile::kTokens;
  __shared__ float part[kFinalFeatures][kWarps];
#pragma unroll
  for (int i = 0; i < Tile::kDyRows; ++i) {
    float sum = sums[i];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / Tile::kTokens + i * kStep][threadIdx.x / 32 % kWarps] = sum;
  }
  __syncthreads();
  const int o = int(threadIdx.x);
  if (o >= kFinalFeatures || o >= features) return;
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += part[o][w];
  bias_sums[o] = total;
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) final_layer_weight_kernel(FinalLayerBackward a) {
  using T = typename Tile::T;
  constexpr int kWarpColumns = Tile::kColumns / (Tile::kThreads / 32), kStep = Tile::kThreads / Tile::kTokens;
  __shared__ typename Tile::Room rooms[2];
  const int features = int(a.grid.channels * a.grid.patch * a.grid.patch);
  const int first_feature = int(blockIdx.x) * kFinalFeatures, warp = int(threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int first_column = int(blockIdx.y) * Tile::kColumns;
  const int64_t column = first_column + int(threadIdx.x) % Tile::kLanes * kVec<T>, group = blockIdx.z;
  const int tokens = int(a.grid.height * a.grid.width);
  const int64_t first = group * a.group_tokens, all = a.batch * tokens;
  const int64_t last = first + a.group_tokens < all ? first + a.group_tokens : all;
  const auto step_at = [&](int64_t start, TokenPlace at) {
    return FinalStep{start, int(last - start < Tile::kTokens ? last - start : Tile::kTokens), at};
  };
  const int feature = first_feature + int(threadIdx.x) / Tile::kTokens;
  int pixel[Tile::kDyRows];
#pragma unroll
  for (int i = 0; i < Tile::kDyRows; ++i) pixel[i] = patch_pixel(a.grid, feature + i * kStep);

  TileSums<kFinalFeatures, kWarpColumns> sums = {};
  float bias[Tile::kDyRows] = {};
  Tile mine;
  FinalStep step = step_at(first, {int(first / tokens), int(first % tokens)});
  load_step(a, mine, step, column, feature, features, pixel);
  for (int turn = 0; step.count > 0; turn ^= 1) {
    place_step(a, mine, step, column, rooms[turn]);
#pragma unroll
    for (int i = 0; i < Tile::kDyRows; ++i) bias[i] += to_float(mine.dy[i]);
    __syncthreads();
    step = step_at(step.first + Tile::kTokens, step.at.after(Tile::kTokens, tokens));
    if (step.count > 0) load_step(a, mine, step, column, feature, features, pixel);
    TileSums<kFinalFeatures, kWarpColumns> part = {};  // of the step: sums over many tokens stay exact
    tile_mma<Major::k, Major::mn>(part, rooms[turn].dy, Tile::kDyPitch, rooms[turn].h + warp * kWarpColumns,
                                  Tile::kHPitch, Tile::kTokens, lane);
    add_sums(part, sums);
  }
#pragma unroll
  for (int i = 0; i < kFinalFeatures / 16; ++i)
#pragma unroll
    for (int j = 0; j < kWarpColumns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int o = first_feature + tile_row(i, e, lane);
        const int d = first_column + warp * kWarpColumns + tile_column(j, e, lane);
        if (o < features && d < a.dim)
          store_pair(a.weight_sums + (o * a.groups + group) * a.dim + d, sums[i][j][e], sums[i][j][e + 1]);
      }
  if (blockIdx.y == 0)
    write_bias_sums<Tile>(a.bias_sums + group * features + first_feature, bias, features - first_feature);
}

}  // namespace dit
