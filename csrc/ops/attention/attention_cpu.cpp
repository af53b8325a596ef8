// SPDX-License-Identifier: Apache-2.0
//   S = scale * q k^T,   P = softmax(S),   out = P v,   lse = log(sum_k exp(S))
//   dv = P^T dout,   dP = dout v^T,   dS = P * (dP - delta),   delta = rowsum(P * dP)
//   dq = scale * dS k,   dk = scale * dS^T q
//
// Forward: kRowBlock queries meet kKeyBlock keys at a time: their logits, 27 KB, stay in the first cache, become P there
// and are multiplied by v. The sums so far shrink whenever a larger logit comes. Keys and values are packed (products.h)
// kPackedKeys at a time, once for consecutive items of a head if all of its keys are that few.
//
// Backward: a head is packed whole and walked over in blocks of kQueryBlock queries. A block makes its rows of S and dP
// for all keys, so that P is normalised and delta is summed from what P and dP are in these very bits: neither lse, which
// is rounded, nor out enters. P and dS replace them in place; then dq is finished and dk, dv, which stay in cache as
// float32, are added to. Memory is linear in the number of keys: 5 * Dh + 2 * kQueryBlock floats each.
//
// Arithmetic is float32 (Floats), each result rounded once. Processors with products of bf16 pairs (Pairs) use them for
// bf16: then P and dS are rounded to bf16 too.
#include "ops/attention/attention.h"

#include <limits>

#include "common/cpu/exp.h"
#include "common/cpu/products.h"

namespace dit::DIT_ISA {

namespace {

constexpr int64_t kKeyBlock = 288;
constexpr int64_t kPackedKeys = 4 * kKeyBlock;
constexpr int64_t kQueryBlock = 2 * kRowBlock;
constexpr float kLowest = -std::numeric_limits<float>::infinity();
static_assert(kKeyBlock % kRowBlock == 0 && kKeyBlock % W == 0, "a block of keys is made of whole tiles and panels");
static_assert(kCpuQueries % kRowBlock == 0, "an item of the forward is made of whole blocks");

template <class T>
Rows<T> rows_of(const Heads& x, int64_t n, int64_t h, int64_t first, int64_t count, int64_t dim) {
  const HeadStrides& s = x.stride;
  return {static_cast<const T*>(x.data) + n * s.sample + h * s.head + first * s.token, s.token, count, dim};
}

// Rows of logits for so many keys: room for whole tiles of keys behind them, and an odd number of cache lines, so that
// a column does not fall into few sets of the cache.
int64_t logits_stride(int64_t keys) { return round_up(keys + kRowBlock, 16) | 16; }

// v with the lanes from n on set to `fill`.
F filled(F v, Full, float) { return v; }
F filled(F v, int64_t n, float fill) {
  for (int64_t j = n; j < W; ++j) v[j] = fill;
  return v;
}

float max(F v) {
  float most = v[0];
  for (int64_t j = 1; j < W; ++j) most = std::max(most, v[j]);
  return most;
}

// Calls f(mode, type) with null pointers of the mode of products and the element type.
template <class Body>
void dispatch_mode(Dtype dtype, Body&& f) {
  dispatch(dtype, [&](auto* type) {
#if defined(DIT_PAIRS)
    if constexpr (std::is_same_v<decltype(type), bf16*>)
      if (pairs_supported()) return f(static_cast<Pairs*>(nullptr), type);
#endif
    f(static_cast<Floats*>(nullptr), type);
  });
}

// What the forward of one item works in.
template <class M>
struct ForwardRoom {
  int64_t width, stride;             // floats of a row of sums, of a row of logits
  float *keys, *values;              // packed: kPackedKeys of a head
  float *queries, *logits, *sums;    // kCpuQueries, kRowBlock, kCpuQueries rows
  float top[kCpuQueries], total[kCpuQueries];  // product of the largest logit so far; sum of powers
  Arrays memory;
  Left q;
  Right k, v;
  int64_t packed_head = -1, packed_first = -1;

  explicit ForwardRoom(const AttentionForward& a)
      : width(round_up(a.dim, W)), stride(logits_stride(std::min(a.keys, kKeyBlock))), memory([&](auto array) {
          const int64_t packed = std::min(a.keys, kPackedKeys);
          array(keys, round_up(packed, W) * units<M>(a.dim));
          array(values, units<M>(packed) * width);
          array(queries, kCpuQueries * round_up(units<M>(a.dim), W));
          array(logits, kRowBlock * stride);
          array(sums, kCpuQueries * width);
        }) {}
};

template <class M, class T>
void pack_keys(const AttentionForward& a, ForwardRoom<M>& room, int64_t head, int64_t first) {
  if (room.packed_head == head && room.packed_first == first) return;
  const int64_t n = head / a.heads, h = head % a.heads, count = std::min(kPackedKeys, a.keys - first);
  room.k = pack_transposed<M>(rows_of<T>(a.k, n, h, first, count, a.dim), room.keys);
  room.v = pack_right<M>(rows_of<T>(a.v, n, h, first, count, a.dim), room.values);
  room.packed_head = head;
  room.packed_first = first;
}

// The one of two products that makes the larger logit.
float further(float a, float b, float scale) { return scale < 0.f ? std::min(a, b) : std::max(a, b); }

// Of a row of products q k, the one that makes the largest logit.
float row_top(const float* row, int64_t keys, float scale) {
  const float sign = scale < 0.f ? -1.f : 1.f;
  F most = splat(kLowest);
  sweep(keys, [&](int64_t i, auto lanes) {
    const F value = filled(load(row + i) * splat(sign), lanes, kLowest);
    most = (value > most) ? value : most;
  });
  return max(most) * sign;
}

// Powers e^(scale * (product - top)), exactly 1 for the largest logit however large, replace a row of products; returns
// their sum.
template <class M>
float row_powers(float* row, int64_t keys, float scale, float top) {
  const Exp exp(scale);
  F total = {};
  sweep(keys, [&](int64_t i, auto lanes) {
    const F p = keep(exp(load(row + i) - splat(top)), lanes);
    total += p;
    if constexpr (M::kDepth == 1) store(row + i, p);
    else store(reinterpret_cast<bf16*>(row) + i, p);  // never past what was read
  });
  return sum(total);
}

// kRowBlock or fewer queries, from the item's row `first` on, against `keys` packed keys from `k0` on. `fresh`: they
// have met no others.
template <class M>
void forward_block(const AttentionForward& a, ForwardRoom<M>& room, int64_t first, int64_t count, int64_t k0,
                   int64_t keys, bool fresh) {
  const Left q = {room.q.at + first * room.q.row, room.q.row, 1};
  const Right k = {room.k.at + k0 / W * room.k.panel, room.k.panel};
  const Right v = {room.v.at + units<M>(k0) * W, room.v.panel};
  float *sums = room.sums + first * room.width, *top = room.top + first, *total = room.total + first;
  product<M>({room.logits, room.stride}, q, k, count, vector_count(keys), units<M>(a.dim), false);

  float shrink[kRowBlock];
  for (int64_t r = 0; r < count; ++r) {
    const float before = top[r];
    top[r] = row_top(room.logits + r * room.stride, keys, a.scale);
    if (!fresh) top[r] = further(top[r], before, a.scale);
    shrink[r] = fresh ? 0.f : std::exp(a.scale * (before - top[r]));
  }
  for (int64_t r = 0; r < count; ++r)
    total[r] = total[r] * shrink[r] + row_powers<M>(room.logits + r * room.stride, keys, a.scale, top[r]);
  for (int64_t r = 0; r < count && !fresh; ++r)
    for (int64_t j = r * room.width; j < (r + 1) * room.width; j += W) store(sums + j, load(sums + j) * splat(shrink[r]));
  product<M>({sums, room.width}, {room.logits, room.stride, 1}, v, count, vector_count(a.dim), units<M>(keys), !fresh);
}

template <class M, class T>
void forward_item(const AttentionForward& a, ForwardRoom<M>& room, int64_t item) {
  const int64_t blocks = attention_blocks(a.queries), head = item / blocks;
  const int64_t n = head / a.heads, h = head % a.heads;
  const int64_t first = item % blocks * kCpuQueries, count = std::min(kCpuQueries, a.queries - first);
  room.q = pack_left<M>(rows_of<T>(a.q, n, h, first, count, a.dim), room.queries);
  std::fill_n(room.total, count, 0.f);
  for (int64_t k0 = 0; k0 < a.keys; k0 += kPackedKeys) {
    pack_keys<M, T>(a, room, head, k0);
    const int64_t keys = std::min(kPackedKeys, a.keys - k0);
    for (int64_t r = 0; r < count; r += kRowBlock)
      for (int64_t j = 0; j < keys; j += kKeyBlock)
        forward_block(a, room, r, std::min(kRowBlock, count - r), j, std::min(kKeyBlock, keys - j), k0 + j == 0);
  }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = n * a.queries + first + r;
    T* out = static_cast<T*>(a.out) + (token * a.heads + h) * a.dim;
    const F total = splat(room.total[r]);
    sweep(a.dim, [&](int64_t j, auto lanes) { store(out + j, load(room.sums + r * room.width + j) / total, lanes); });
    a.lse[head * a.queries + first + r] = a.scale * room.top[r] + std::log(room.total[r]);
  }
}

// What the backward of one head works in.
template <class M>
struct BackwardRoom {
  int64_t width, stride;                   // floats of a row of gradients, of a row of logits
  float *keys, *values, *keys_by_row;      // packed: all of a head
  float *dk, *dv;                          // rows of sums, all keys
  float *queries, *douts;                  // packed as left operands: kQueryBlock
  float *queries_by_row, *douts_by_row;    // packed as right operands
  float *p, *ds, *dq;                      // kQueryBlock rows
  float* ds_pairs;                         // Pairs: dS with pairs along the keys; in ds they are along the queries
  float top[kQueryBlock], total[kQueryBlock], dot[kQueryBlock], norm[kQueryBlock + 1], delta[kQueryBlock + 1];
  Arrays memory;

  explicit BackwardRoom(const AttentionBackward& a)
      : width(round_up(a.dim, W)), stride(logits_stride(a.keys)), memory([&](auto array) {
          for (float** transposed : {&keys, &values}) array(*transposed, round_up(a.keys, W) * units<M>(a.dim));
          array(keys_by_row, units<M>(a.keys) * width);
          for (float** sums : {&dk, &dv}) array(*sums, round_up(a.keys, kRowBlock) * width);
          for (float** left : {&queries, &douts}) array(*left, kQueryBlock * round_up(units<M>(a.dim), W));
          for (float** right : {&queries_by_row, &douts_by_row}) array(*right, units<M>(kQueryBlock) * width);
          for (float** rows : {&p, &ds}) array(*rows, kQueryBlock * stride);
          array(dq, kQueryBlock * width);
          array(ds_pairs, M::kDepth == 1 ? 0 : kQueryBlock * stride);
        }) {}
};

// Powers replace the products q k of one row, from key `first` on; adds to their sum, and to that of their products with
// dP.
template <class M>
void row_probabilities(BackwardRoom<M>& room, int64_t r, int64_t first, int64_t keys, float scale) {
  float *p = room.p + r * room.stride + first, *dp = room.ds + r * room.stride + first;
  const Exp exp(scale);
  const F top = splat(room.top[r]);
  F total = {}, dot = {};
  sweep(keys, [&](int64_t i, auto lanes) {
    const F e = keep(exp(load(p + i) - top), lanes);
    store(p + i, e);
    total += e;
    dot += e * load(dp + i);
  });
  room.total[r] += sum(total);
  room.dot[r] += sum(dot);
}

// P and dS of one row, or of two as pairs, in place.
template <class M>
void finish_rows(BackwardRoom<M>& room, int64_t r, int64_t first, int64_t keys) {
  float *p = room.p + r * room.stride + first, *ds = room.ds + r * room.stride + first;
  const auto finish = [&](int64_t i, int64_t row, F& pv, F& dsv) {
    pv = load(p + row * room.stride + i) * splat(room.norm[r + row]);
    dsv = pv * (load(ds + row * room.stride + i) - splat(room.delta[r + row]));
  };
  for (int64_t i = 0; i < keys; i += W) {
    F p0, ds0;
    finish(i, 0, p0, ds0);
    if constexpr (M::kDepth == 1) {
      store(p + i, p0);
      store(ds + i, ds0);
    } else {
      F p1, ds1;
      finish(i, 1, p1, ds1);
      const auto pair = [](F even, F odd) {
        return (F)(widen(pack(bf16{}, even)) | widen(pack(bf16{}, odd)) << 16);
      };
      store(p + i, pair(p0, p1));
      store(ds + i, pair(ds0, ds1));
      float* along = room.ds_pairs + r * room.stride;
      store(reinterpret_cast<bf16*>(along) + first + i, ds0);
      store(reinterpret_cast<bf16*>(along + room.stride) + first + i, ds1);
    }
  }
}

// A head's keys and values, packed.
struct PackedKeys {
  Right k, v, k_by_row;
};

// Of kQueryBlock queries or fewer: powers and dP for all keys, and what makes P and dS of them.
template <class M>
void backward_logits(const AttentionBackward& a, BackwardRoom<M>& room, const PackedKeys& packed, Left q, Left dout,
                     int64_t count) {
  const auto each_key_block = [&](const Right& b, auto&& body) {
    for (int64_t k0 = 0; k0 < a.keys; k0 += kKeyBlock)
      body(k0, std::min(kKeyBlock, a.keys - k0), Right{b.at + k0 / W * b.panel, b.panel});
  };
  const int64_t depth = units<M>(a.dim);
  each_key_block(packed.k, [&](int64_t k0, int64_t keys, Right k) {
    product<M>({room.p + k0, room.stride}, q, k, count, vector_count(keys), depth, false);
    for (int64_t r = 0; r < count; ++r) {
      const float top = row_top(room.p + r * room.stride + k0, keys, a.scale);
      room.top[r] = k0 == 0 ? top : further(room.top[r], top, a.scale);
    }
  });
  std::fill_n(room.total, count, 0.f);
  std::fill_n(room.dot, count, 0.f);
  each_key_block(packed.v, [&](int64_t k0, int64_t keys, Right v) {
    product<M>({room.ds + k0, room.stride}, dout, v, count, vector_count(keys), depth, false);
    for (int64_t r = 0; r < count; ++r) row_probabilities(room, r, k0, keys, a.scale);
  });
  for (int64_t r = 0; r < count; ++r) {
    room.norm[r] = 1.f / room.total[r];
    room.delta[r] = room.dot[r] * room.norm[r];
  }
  room.norm[count] = room.delta[count] = 0.f;  // the absent one of a pair
}

// Queries first..first + count of one head: dq, and their share of dk and dv.
template <class M, class T>
void backward_block(const AttentionBackward& a, BackwardRoom<M>& room, const PackedKeys& packed, int64_t n, int64_t h,
                    int64_t first, int64_t count) {
  const HeadStrides dense = {a.queries * a.heads * a.dim, a.heads * a.dim, a.dim};
  const Rows<T> q_rows = rows_of<T>(a.q, n, h, first, count, a.dim);
  const Rows<T> dout_rows = rows_of<T>({a.dout, dense}, n, h, first, count, a.dim);
  backward_logits(a, room, packed, pack_left<M>(q_rows, room.queries), pack_left<M>(dout_rows, room.douts), count);

  const Right q_by_row = pack_right<M>(q_rows, room.queries_by_row);
  const Right dout_by_row = pack_right<M>(dout_rows, room.douts_by_row);
  const int64_t vectors = vector_count(a.dim), step = M::kDepth * room.stride;
  for (int64_t k0 = 0; k0 < a.keys; k0 += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, a.keys - k0);
    for (int64_t r = 0; r < count; r += M::kDepth) finish_rows(room, r, k0, keys);
    for (int64_t j = k0; j < k0 + keys; j += kRowBlock) {
      const int64_t rows = std::min(kRowBlock, k0 + keys - j);
      product<M>({room.dv + j * room.width, room.width}, {room.p + j, 1, step}, dout_by_row, rows, vectors,
                 units<M>(count), first > 0);
      product<M>({room.dk + j * room.width, room.width}, {room.ds + j, 1, step}, q_by_row, rows, vectors,
                 units<M>(count), first > 0);
    }
    const float* ds = M::kDepth == 1 ? room.ds : room.ds_pairs;
    product<M>({room.dq, room.width}, {ds + units<M>(k0), room.stride, 1},
               {packed.k_by_row.at + units<M>(k0) * W, packed.k_by_row.panel}, count, vectors, units<M>(keys), k0 > 0);
  }
}

// Rows of float32 sums, times `factor`, to a gradient.
template <class T>
void store_rows(const MutableHeads& to, int64_t n, int64_t h, int64_t first, int64_t count, int64_t dim,
                const float* sums, int64_t width, float factor) {
  for (int64_t r = 0; r < count; ++r) {
    T* row = static_cast<T*>(to.data) + n * to.stride.sample + h * to.stride.head + (first + r) * to.stride.token;
    sweep(dim, [&](int64_t j, auto lanes) { store(row + j, load(sums + r * width + j) * splat(factor), lanes); });
  }
}

template <class M, class T>
void backward_head(const AttentionBackward& a, BackwardRoom<M>& room, int64_t n, int64_t h) {
  const Rows<T> k_rows = rows_of<T>(a.k, n, h, 0, a.keys, a.dim), v_rows = rows_of<T>(a.v, n, h, 0, a.keys, a.dim);
  const PackedKeys packed = {pack_transposed<M>(k_rows, room.keys), pack_transposed<M>(v_rows, room.values),
                             pack_right<M>(k_rows, room.keys_by_row)};
  for (int64_t q0 = 0; q0 < a.queries; q0 += kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, a.queries - q0);
    backward_block<M, T>(a, room, packed, n, h, q0, count);
    store_rows<T>(a.dq, n, h, q0, count, a.dim, room.dq, room.width, a.scale);
  }
  store_rows<T>(a.dk, n, h, 0, a.keys, a.dim, room.dk, room.width, a.scale);  // 0 where there is no query
  store_rows<T>(a.dv, n, h, 0, a.keys, a.dim, room.dv, room.width, 1.f);
}

}  // namespace

void attention_forward(const AttentionForward& a, int64_t begin, int64_t end) {
  dispatch_mode(a.dtype, [&](auto* mode, auto* type) {
    using M = std::remove_pointer_t<decltype(mode)>;
    using T = std::remove_pointer_t<decltype(type)>;
    ForwardRoom<M> room(a);
    for (int64_t item = begin; item < end; ++item) forward_item<M, T>(a, room, item);
  });
}

void attention_backward(const AttentionBackward& a, int64_t begin, int64_t end) {
  dispatch_mode(a.dtype, [&](auto* mode, auto* type) {
    using M = std::remove_pointer_t<decltype(mode)>;
    using T = std::remove_pointer_t<decltype(type)>;
    BackwardRoom<M> room(a);
    for (int64_t head = begin; head < end; ++head) backward_head<M, T>(a, room, head / a.heads, head % a.heads);
  });
}

}  // namespace dit::DIT_ISA
