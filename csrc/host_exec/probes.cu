// SPDX-License-Identifier: Apache-2.0
// What each probe reads and writes is stated by the struct it is named after or at its kernel; tests/host_exec/
// test_ptx.py states what it must compute.
#include "host_exec/probes.h"

#include <cstring>

#include "common/cuda/launch.h"
#include "common/cuda/ptx_sm90.cuh"

namespace dit {
namespace {

// ---- each lane of a warp has its own input and output

template <class Probe>
__global__ void lanes_kernel(const typename Probe::In* in, typename Probe::Out* out) {
  Probe::run(in[threadIdx.x], out[threadIdx.x]);
}

template <class T>
struct MmaK16 {
  struct In {
    float d[4];
    uint32_t a[4], b[2];
  };
  struct Out {
    float d[4];
  };
  static DIT_DEVICE void run(const In& in, Out& out) {
    float d[4] = {in.d[0], in.d[1], in.d[2], in.d[3]};
    mma_m16n8k16<T>(d, in.a, in.b[0], in.b[1]);
    for (int i = 0; i < 4; ++i) out.d[i] = d[i];
  }
};

template <class T>
struct MmaK8 {
  struct In {
    float d[4];
    uint32_t a[2], b;
  };
  using Out = typename MmaK16<T>::Out;
  static DIT_DEVICE void run(const In& in, Out& out) {
    float d[4] = {in.d[0], in.d[1], in.d[2], in.d[3]};
    mma_m16n8k8<T>(d, in.a, in.b);
    for (int i = 0; i < 4; ++i) out.d[i] = d[i];
  }
};

template <class T>
struct Pack {
  struct In {
    float low, high;
  };
  using Out = uint32_t;
  static DIT_DEVICE void run(const In& in, Out& out) { out = pack<T>(in.low, in.high); }
};

struct Exp2 {
  using In = float;
  using Out = float;
  static DIT_DEVICE void run(const In& in, Out& out) { out = exp2_approx(in); }
};

// ---- ldmatrix: 32 rows of 8 elements, and which of them each lane points at

struct LdmatrixIn {
  uint16_t rows[32][8];
  int row_of_lane[32];
};

template <int Matrices, bool transposed>
__global__ void ldmatrix_kernel(const LdmatrixIn* in, uint32_t (*out)[Matrices]) {
  __shared__ __align__(16) uint16_t rows[32][8];
  for (int i = 0; i < 8; ++i) rows[threadIdx.x][i] = in->rows[threadIdx.x][i];
  __syncthreads();
  const void* row = rows[in->row_of_lane[threadIdx.x]];
  uint32_t(&r)[Matrices] = out[threadIdx.x];
  if constexpr (Matrices == 1 && !transposed) ldmatrix_x1(r[0], row);
  if constexpr (Matrices == 1 && transposed) ldmatrix_x1_trans(r[0], row);
  if constexpr (Matrices == 2 && !transposed) ldmatrix_x2(r, row);
  if constexpr (Matrices == 2 && transposed) ldmatrix_x2_trans(r, row);
  if constexpr (Matrices == 4 && !transposed) ldmatrix_x4(r, row);
  if constexpr (Matrices == 4 && transposed) ldmatrix_x4_trans(r, row);
}

// ---- cp.async: each lane copies 16 bytes in each of two groups and reads what its neighbour copied

struct CopyIn {
  uint4 data[2][32];
  int wanted[2][32];
};

__global__ void cp_async_kernel(const CopyIn* in, uint4 (*out)[32]) {
  __shared__ uint4 copied[2][32];
  for (int group = 0; group < 2; ++group) {
    copied[group][threadIdx.x] = make_uint4(1, 2, 3, 4);
    cp_async16(&copied[group][threadIdx.x], &in->data[group][threadIdx.x], in->wanted[group][threadIdx.x] != 0);
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncthreads();
  out[0][threadIdx.x] = copied[0][threadIdx.x ^ 1];
  cp_async_wait<0>();
  __syncthreads();
  out[1][threadIdx.x] = copied[1][threadIdx.x ^ 1];
}

// ---- mbarrier: the first warp hands four numbers on to the second, one a phase

__global__ void mbarrier_kernel(const int (*in)[32], int (*out)[32]) {
  __shared__ int slot[32];
  __shared__ uint64_t full, empty;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 32);
    mbarrier_init(&empty, 32);
    mbarrier_init_fence();
  }
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    if (threadIdx.x < 32) {
      mbarrier_wait(&empty, (i & 1) ^ 1);  // the phase before the first counts as ended
      slot[lane] = in[i][lane];
      mbarrier_arrive(&full);
    } else {
      mbarrier_wait(&full, i & 1);
      out[i][lane] = slot[lane ^ 5];
      mbarrier_arrive(&empty);
    }
  }
}

// ---- TMA: a box of 16 rows of a matrix, as it lies in shared memory

constexpr int kTmaRows = 20, kTmaColumns = 72, kTmaBoxRows = 16;
struct TmaIn {
  uint16_t matrix[kTmaRows][kTmaColumns];
};
struct TmaOut {
  uint4 tile[kTmaBoxRows * 8];
};

__global__ void tma_kernel(const __grid_constant__ TensorMap map, TmaOut* out, int row, int column) {
  auto* tile = dynamic_smem<uint4>();
  auto* barrier = reinterpret_cast<uint64_t*>(tile + kTmaBoxRows * 8);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(barrier, sizeof(TmaOut));
    tma_load(tile, &map, barrier, row, column);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < kTmaBoxRows * 8; i += 32) out->tile[i] = tile[i];
}

template <int row, int column>
cudaError_t tma_probe(const void* in, void* out, cudaStream_t stream) {
  TensorMap map;
  const cudaError_t error =
      make_tensor_map<__half>(&map, in, kTmaRows, kTmaColumns, kTmaColumns * sizeof(uint16_t), kTmaBoxRows);
  if (error != cudaSuccess) return error;
  return launch(tma_kernel, dim3(1), dim3(32), sizeof(TmaOut) + sizeof(uint64_t), stream, map,
                static_cast<TmaOut*>(out), row, column);
}

// ---- wgmma: the third 16 columns of two matrices of 64 rows and 64 columns

constexpr int kWgmmaSize = 64;
struct WgmmaIn {
  uint16_t a[kWgmmaSize][kWgmmaSize], b[kWgmmaSize][kWgmmaSize];
  float d[128][kWgmmaSize / 2];
};
struct WgmmaOut {
  float d[128][kWgmmaSize / 2];
};

template <class T, bool accumulate>
__global__ void wgmma_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                             const WgmmaIn* in, WgmmaOut* out) {
  constexpr int kTileBytes = kWgmmaSize * 128, kStepBytes = 16 * sizeof(T);
  auto* a = dynamic_smem<unsigned char>();
  auto* b = a + kTileBytes;
  auto* barrier = reinterpret_cast<uint64_t*>(b + kTileBytes);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(barrier, 2 * kTileBytes);
    tma_load(a, &a_map, barrier, 0, 0);
    tma_load(b, &b_map, barrier, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  float d[kWgmmaSize / 2];
  for (int i = 0; i < kWgmmaSize / 2; ++i) d[i] = in->d[threadIdx.x][i];
  wgmma_fence();
  wgmma_m64k16<T, kWgmmaSize>(d, wgmma_descriptor(a + 2 * kStepBytes), wgmma_descriptor(b + 2 * kStepBytes),
                              accumulate);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kWgmmaSize / 2; ++i) out->d[threadIdx.x][i] = d[i];
}

template <class T, bool accumulate>
cudaError_t wgmma_probe(const void* in, void* out, cudaStream_t stream) {
  const auto* input = static_cast<const WgmmaIn*>(in);
  TensorMap a_map, b_map;
  constexpr int kRowBytes = kWgmmaSize * sizeof(T);
  cudaError_t error = make_tensor_map<T>(&a_map, input->a, kWgmmaSize, kWgmmaSize, kRowBytes, kWgmmaSize);
  if (error == cudaSuccess) error = make_tensor_map<T>(&b_map, input->b, kWgmmaSize, kWgmmaSize, kRowBytes, kWgmmaSize);
  if (error != cudaSuccess) return error;
  return launch(wgmma_kernel<T, accumulate>, dim3(1), dim3(128), 2 * kRowBytes * kWgmmaSize + sizeof(uint64_t), stream,
                a_map, b_map, input, static_cast<WgmmaOut*>(out));
}

// ---- the table

struct Entry {
  const char* name;
  size_t in, out;
  cudaError_t (*run)(const void* in, void* out, cudaStream_t stream);
};

template <auto kernel, class In, class Out, int threads>
cudaError_t one_block(const void* in, void* out, cudaStream_t stream) {
  return launch(kernel, dim3(1), dim3(threads), 0, stream, static_cast<In>(in), static_cast<Out>(out));
}

template <class Probe>
constexpr Entry lanes(const char* name) {
  using In = typename Probe::In;
  using Out = typename Probe::Out;
  return {name, 32 * sizeof(In), 32 * sizeof(Out), one_block<lanes_kernel<Probe>, const In*, Out*, 32>};
}

template <int Matrices, bool transposed>
constexpr Entry ldmatrix(const char* name) {
  return {name, sizeof(LdmatrixIn), 32 * Matrices * sizeof(uint32_t),
          one_block<ldmatrix_kernel<Matrices, transposed>, const LdmatrixIn*, uint32_t(*)[Matrices], 32>};
}

const Entry kProbes[] = {
    lanes<MmaK16<__nv_bfloat16>>("mma_m16n8k16_bf16"),
    lanes<MmaK16<__half>>("mma_m16n8k16_f16"),
    lanes<MmaK8<__nv_bfloat16>>("mma_m16n8k8_bf16"),
    lanes<MmaK8<__half>>("mma_m16n8k8_f16"),
    lanes<Pack<__nv_bfloat16>>("pack_bf16"),
    lanes<Pack<__half>>("pack_f16"),
    lanes<Exp2>("exp2_approx"),
    ldmatrix<1, false>("ldmatrix_x1"),
    ldmatrix<1, true>("ldmatrix_x1_trans"),
    ldmatrix<2, false>("ldmatrix_x2"),
    ldmatrix<2, true>("ldmatrix_x2_trans"),
    ldmatrix<4, false>("ldmatrix_x4"),
    ldmatrix<4, true>("ldmatrix_x4_trans"),
    {"cp_async16", sizeof(CopyIn), 2 * 32 * sizeof(uint4), one_block<cp_async_kernel, const CopyIn*, uint4(*)[32], 32>},
    {"mbarrier", 4 * 32 * sizeof(int), 4 * 32 * sizeof(int),
     one_block<mbarrier_kernel, const int(*)[32], int(*)[32], 64>},
    {"tma_load_inside", sizeof(TmaIn), sizeof(TmaOut), tma_probe<2, 8>},
    {"tma_load_past_the_end", sizeof(TmaIn), sizeof(TmaOut), tma_probe<8, 32>},
    {"tma_load_before_the_start", sizeof(TmaIn), sizeof(TmaOut), tma_probe<-3, -5>},
    {"wgmma_m64n64k16_bf16", sizeof(WgmmaIn), sizeof(WgmmaOut), wgmma_probe<__nv_bfloat16, true>},
    {"wgmma_m64n64k16_f16", sizeof(WgmmaIn), sizeof(WgmmaOut), wgmma_probe<__half, true>},
    {"wgmma_m64n64k16_bf16_overwrite", sizeof(WgmmaIn), sizeof(WgmmaOut), wgmma_probe<__nv_bfloat16, false>},
};
constexpr int kProbeCount = sizeof(kProbes) / sizeof(kProbes[0]);

const Entry* find(const char* name) {
  for (const Entry& probe : kProbes)
    if (std::strcmp(probe.name, name) == 0) return &probe;
  return nullptr;
}

}  // namespace
}  // namespace dit

const char* dit_probe_name(int index) { return index < dit::kProbeCount ? dit::kProbes[index].name : nullptr; }

bool dit_probe_sizes(const char* name, size_t* in, size_t* out) {
  const dit::Entry* probe = dit::find(name);
  if (!probe) return false;
  *in = probe->in;
  *out = probe->out;
  return true;
}

cudaError_t dit_probe(const char* name, const void* in, void* out, cudaStream_t stream) {
  const dit::Entry* probe = dit::find(name);
  return probe ? probe->run(in, out, stream) : cudaErrorInvalidValue;
}
