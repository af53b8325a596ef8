# SPDX-License-Identifier: Apache-2.0
"""The reader of compiled kernels, on kernels made to have what its columns count."""

import subprocess

import pytest

from dit_fast.kernels import cubin, ptx_architectures, read_cubins, read_library, short_name, table

from .test_budgets import NVCC, needs_triton

SOURCE = """
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <mma.h>
using namespace nvcuda;

namespace outer { namespace {

template <typename T, int N>
__global__ void plain(const T* x, T* y) {
  __shared__ float room[N];
  room[threadIdx.x] = float(x[threadIdx.x]);
  __syncthreads();
  y[threadIdx.x] = T(room[N - 1 - threadIdx.x]);
}

template <bool Launch>
__global__ void __launch_bounds__(1024) spilling(const float* x, float* y) {  // 128 sums a thread, 64 registers
  float sums[128] = {};
  for (int i = 0; i < 1000; ++i)
    for (int j = 0; j < 128; ++j) sums[j] = sums[j] * x[i] + x[j];
  for (int j = 0; j < 128; ++j) y[j * 1024 + threadIdx.x] = sums[j];
}

}  // namespace

__global__ void multiplying(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  wmma::load_matrix_sync(left, a, 16);
  wmma::load_matrix_sync(right, b, 16);
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
}

__global__ void copying(const float4* x, float4* y) {
  __shared__ float4 room[32];
  __pipeline_memcpy_async(&room[threadIdx.x], &x[threadIdx.x], 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  y[threadIdx.x] = room[threadIdx.x];
}

}  // namespace outer

extern "C" void launch(void* p) {
  outer::plain<__nv_bfloat16, 64><<<1, 64>>>((__nv_bfloat16*)p, (__nv_bfloat16*)p);
  outer::plain<float, 128><<<1, 128>>>((float*)p, (float*)p);
  outer::spilling<true><<<1, 1024>>>((float*)p, (float*)p);
  outer::multiplying<<<1, 32>>>((__nv_bfloat16*)p, (__nv_bfloat16*)p, (float*)p);
  outer::copying<<<1, 32>>>((float4*)p, (float4*)p);
}
"""


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in CUDA_HOME to compile the kernels that are read")
def test_every_column_counts(tmp_path):
    (tmp_path / "k.cu").write_text(SOURCE)
    targets = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90a,code=[sm_90a,compute_90a]"]
    library = tmp_path / "k.so"
    subprocess.run(
        [NVCC, "-shared", "-Xcompiler", "-fPIC", *targets, "-o", str(library), str(tmp_path / "k.cu")], check=True
    )
    kernels = {(k.name, k.arch): k for k in read_library(library)}
    names = {"plain<bf16, 64>", "plain<fp32, 128>", "spilling<true>", "multiplying", "copying"}
    assert set(kernels) == {(name, arch) for name in names for arch in ("sm_80", "sm_90a")}
    assert ptx_architectures(library) == {"sm_90a"}
    for (name, _), k in kernels.items():
        assert 8 <= k.registers <= 255 and k.instructions >= 8
        assert (k.local_loads > 20 and k.local_stores > 20 and k.stack > 100) == (name == "spilling<true>"), k
        assert (k.spills == 0) == (name != "spilling<true>"), k
        assert (k.matrix == 2) == (name == "multiplying") and (k.matrix == 0) == (name != "multiplying"), k
        assert (k.cp_async == 1) == (name == "copying"), k
        assert (k.barriers == 1) == name.startswith("plain"), k
        assert k.tma == 0
    assert kernels["spilling<true>", "sm_80"].registers == 64
    shared = {name: kernels[name, "sm_80"].shared for name in names}
    assert shared == {"plain<bf16, 64>": 256, "plain<fp32, 128>": 512, "copying": 512} | dict.fromkeys(
        ("spilling<true>", "multiplying"), 0
    )
    header, *rows = table(list(kernels.values())).splitlines()
    assert header.split()[:3] == ["arch", "reg", "shared"] and len(rows) == len(kernels)
    for row, k in zip(rows, kernels.values(), strict=True):
        assert row.split()[:3] == [k.arch, str(k.registers), str(k.shared)] and row.endswith(f"  {k.name}")
    with pytest.raises(RuntimeError, match="cuobjdump cannot read"):
        read_library(tmp_path / "none.so")
    assert read_cubins([]) == []


@needs_triton  # whose package brings the reading tools
def test_a_library_without_cuda_has_no_kernels(tmp_path):
    source = tmp_path / "empty.c"
    source.write_text("int nothing(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "empty.so"), str(source)], check=True)
    assert read_library(tmp_path / "empty.so") == []


def test_without_nvidias_tools_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cubin, "find_spec", lambda name: None)
    monkeypatch.setattr(cubin.shutil, "which", lambda name, path=None: None)
    with pytest.raises(FileNotFoundError, match="nvdisasm is needed .* comes with the CUDA toolkit or triton"):
        cubin.tool.__wrapped__("nvdisasm")


@pytest.mark.parametrize(
    "symbol, name",
    [
        ("_Z13adaln_forwardI13__nv_bfloat16Li1152EEvPKT_PS1_", "adaln_forward<bf16, 1152>"),
        ("_ZN8dit_fast36_GLOBAL__N__c0567af0_4_k_cu_629d4bcd13adaln_forwardI6__halfLi384EEEvPKT_PS3_i",
         "adaln_forward<fp16, 384>"),
        ("_ZN5outer4gateIfLb1ENS_4TileILi4EEEEEvPKT_", "gate<fp32, true, Tile<4>>"),
        ("_ZN8dit_fast8multiplyEPKjPf", "multiply"),
        ("_forward_kernel", "_forward_kernel"),
    ],
)  # fmt: skip
def test_short_names(symbol, name):
    assert short_name(symbol) == name
