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
  const cudaError_t error = make_tensor_map<__half>(&map, in, {kTmaColumns, kTmaRows}, {2 * kTmaColumns},
                                                    {kSwizzleRowElements, kTmaBoxRows});
  if (error != cudaSuccess) return error;
  return launch(tma_kernel, dim3(1), dim3(32), sizeof(TmaOut) + sizeof(uint64_t), stream, map,
                static_cast<TmaOut*>(out), row, column);
}

// ---- TMA of rank 4: of (2 samples, 20 tokens, 3 heads, 72 columns) a box of 16 tokens of one head of one sample, 64
// columns swizzled or 8 plain

constexpr int kTmaHeads = 3, kTmaSamples = 2;
struct TmaHeadsIn {
  uint16_t heads[kTmaSamples][kTmaRows][kTmaHeads][kTmaColumns];
};

template <int box_columns>
__global__ void tma_heads_kernel(const __grid_constant__ TensorMap map, uint4* out, int column, int token) {
  constexpr int kUnits = kTmaBoxRows * box_columns / 8;
  auto* tile = dynamic_smem<uint4>();
  auto* barrier = reinterpret_cast<uint64_t*>(tile + kUnits);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(barrier, kUnits * sizeof(uint4));
    tma_load(tile, &map, barrier, column, 2, token, 1);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < kUnits; i += 32) out[i] = tile[i];
}

template <int box_columns, int column, int token>
cudaError_t tma_heads_probe(const void* in, void* out, cudaStream_t stream) {
  TensorMap map;
  constexpr int64_t kHead = 2 * kTmaColumns, kToken = kHead * kTmaHeads;
  const cudaError_t error =
      make_tensor_map<__half>(&map, in, {kTmaColumns, kTmaHeads, kTmaRows, kTmaSamples},
                              {kHead, kToken, kToken * kTmaRows}, {box_columns, 1, kTmaBoxRows, 1});
  if (error != cudaSuccess) return error;
  return launch(tma_heads_kernel<box_columns>, dim3(1), dim3(32), kTmaBoxRows * box_columns * 2 + sizeof(uint64_t),
                stream, map, static_cast<uint4*>(out), column, token);
}

// ---- wgmma: 16 of the 64 rows or columns along k of two matrices, both 64 x 64 or b 8 wide

constexpr int kWgmmaSize = 64;
// How the operands lie. m, n: transposed, rows along m or n. plain: without swizzle, 8 columns side by side.
// written: b is stored by the threads, not loaded by TMA.
enum class Operands { k_k, k_n, m_n, registers_k, registers_n, registers_n_plain, registers_n_written, k_k_plain };

template <int N>
struct WgmmaIn {
  uint16_t a[kWgmmaSize][kWgmmaSize], b[kWgmmaSize][N];
  float d[128][N / 2];
  uint32_t a_registers[128][4];
};
template <int N>
struct WgmmaOut {
  float d[128][N / 2];
};

template <class T, Operands operands, int N>
DIT_DEVICE void wgmma_once(float (&d)[N / 2], const unsigned char* a, const unsigned char* b,
                           const uint32_t (&registers)[4], bool accumulate) {
  constexpr int kColumns = 2 * 32, kRows = 2 * 16 * 128, kPlainRows = 2 * 16 * 16, kPlainTile = kWgmmaSize * 16;
  if constexpr (operands == Operands::k_k)
    wgmma_m64k16<T, N>(d, wgmma_descriptor(a + kColumns), wgmma_descriptor(b + kColumns), accumulate);
  if constexpr (operands == Operands::k_n)
    wgmma_m64k16<T, N, false, true>(d, wgmma_descriptor(a + kColumns), wgmma_descriptor(b + kRows), accumulate);
  if constexpr (operands == Operands::m_n)
    wgmma_m64k16<T, N, true, true>(d, wgmma_descriptor(a + kRows), wgmma_descriptor(b + kRows), accumulate);
  if constexpr (operands == Operands::registers_k)
    wgmma_m64k16_registers<T, N>(d, registers, wgmma_descriptor(b + kColumns), accumulate);
  if constexpr (operands == Operands::registers_n || operands == Operands::registers_n_written)
    wgmma_m64k16_registers<T, N, true>(d, registers, wgmma_descriptor(b + kRows), accumulate);
  if constexpr (operands == Operands::registers_n_plain)
    wgmma_m64k16_registers<T, N, true>(d, registers, wgmma_descriptor_plain(b + kPlainRows, 128, 128), accumulate);
  if constexpr (operands == Operands::k_k_plain)  // columns 32 to 39 and, as the other eight, 48 to 55
    wgmma_m64k16<T, N>(d, wgmma_descriptor_plain(a + 4 * kPlainTile, 2 * kPlainTile, 128),
                       wgmma_descriptor_plain(b + 4 * kPlainTile, 2 * kPlainTile, 128), accumulate);
}

template <class T, Operands operands, bool accumulate, int N>
__global__ void wgmma_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                             const WgmmaIn<N>* in, WgmmaOut<N>* out) {
  constexpr bool kPlain = operands == Operands::k_k_plain;
  constexpr int kATileBytes = kWgmmaSize * 128, kBTileBytes = kWgmmaSize * N * 2;
  auto* a = dynamic_smem<unsigned char>();
  auto* b = a + kATileBytes;
  auto* barrier = reinterpret_cast<uint64_t*>(b + kBTileBytes);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(barrier, kATileBytes + kBTileBytes);  // what is `written` later is loaded too
    for (int c = 0; c < (kPlain ? 8 : 1); ++c) {
      tma_load(a + c * kWgmmaSize * 16, &a_map, barrier, 0, 8 * c);
      tma_load(b + c * kWgmmaSize * 16, &b_map, barrier, 0, 8 * c);
    }
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  if constexpr (operands == Operands::registers_n_written) {
    for (int i = threadIdx.x; i < kWgmmaSize * N; i += 128) {
      const int row = i / N, column = i % N;
      memcpy(b + row * 128 + ((column / 8 ^ row % 8) * 16 + column % 8 * 2), &in->b[row][column], 2);
    }
    fence_proxy_async();
    __syncthreads();
  }
  float d[N / 2];
  uint32_t registers[4];
  for (int i = 0; i < N / 2; ++i) d[i] = in->d[threadIdx.x][i];
  for (int i = 0; i < 4; ++i) registers[i] = in->a_registers[threadIdx.x][i];
  wgmma_pin(d);
  wgmma_pin(registers);
  wgmma_fence();
  wgmma_once<T, operands, N>(d, a, b, registers, accumulate);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(d);
  wgmma_pin(registers);
  for (int i = 0; i < N / 2; ++i) out->d[threadIdx.x][i] = d[i];
}

template <class T, Operands operands, bool accumulate, int N>
cudaError_t wgmma_probe(const void* in, void* out, cudaStream_t stream) {
  const auto* input = static_cast<const WgmmaIn<N>*>(in);
  TensorMap a_map, b_map;
  constexpr int kColumns = operands == Operands::k_k_plain ? kPlainRowElements : kSwizzleRowElements;
  cudaError_t error = make_tensor_map<T>(&a_map, input->a, {kWgmmaSize, kWgmmaSize}, {2 * kWgmmaSize},
                                         {kColumns, kWgmmaSize});
  if (error == cudaSuccess)
    error = make_tensor_map<T>(&b_map, input->b, {N, kWgmmaSize}, {2 * N}, {N == 8 ? 8 : kColumns, kWgmmaSize});
  if (error != cudaSuccess) return error;
  return launch(wgmma_kernel<T, operands, accumulate, N>, dim3(1), dim3(128),
                2 * kWgmmaSize * (kWgmmaSize + N) + sizeof(uint64_t), stream, a_map, b_map, input,
                static_cast<WgmmaOut<N>*>(out));
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

template <class T, Operands operands, bool accumulate = true, int N = kWgmmaSize>
constexpr Entry wgmma(const char* name) {
  return {name, sizeof(WgmmaIn<N>), sizeof(WgmmaOut<N>), wgmma_probe<T, operands, accumulate, N>};
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
    {"tma_load_before_the_start", sizeof(TmaIn), sizeof(TmaOut), tma_probe<-3, -8>},
    {"tma_load_head", sizeof(TmaHeadsIn), kTmaBoxRows * 128, tma_heads_probe<64, 0, 8>},
    {"tma_load_head_tail", sizeof(TmaHeadsIn), kTmaBoxRows * 16, tma_heads_probe<8, 64, 8>},
    {"tma_load_head_past_the_end", sizeof(TmaHeadsIn), kTmaBoxRows * 16, tma_heads_probe<8, 72, 0>},
    wgmma<__nv_bfloat16, Operands::k_k>("wgmma_m64n64k16_bf16"),
    wgmma<__half, Operands::k_k>("wgmma_m64n64k16_f16"),
    wgmma<__nv_bfloat16, Operands::k_k, false>("wgmma_m64n64k16_bf16_overwrite"),
    wgmma<__half, Operands::k_n>("wgmma_m64n64k16_f16_b_transposed"),
    wgmma<__nv_bfloat16, Operands::m_n>("wgmma_m64n64k16_bf16_both_transposed"),
    wgmma<__half, Operands::m_n>("wgmma_m64n64k16_f16_both_transposed"),
    wgmma<__nv_bfloat16, Operands::k_k_plain>("wgmma_m64n64k16_bf16_plain"),
    wgmma<__nv_bfloat16, Operands::registers_k>("wgmma_m64k16_registers_n64_bf16"),
    wgmma<__half, Operands::registers_n>("wgmma_m64k16_registers_n64_f16_b_transposed"),
    wgmma<__nv_bfloat16, Operands::registers_n_written>("fence_proxy_async"),
    wgmma<__nv_bfloat16, Operands::registers_n_plain, true, 8>("wgmma_m64k16_registers_n8_bf16_b_transposed_plain"),
    wgmma<__half, Operands::registers_n_plain, true, 8>("wgmma_m64k16_registers_n8_f16_b_transposed_plain"),
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
