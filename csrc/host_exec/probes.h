// SPDX-License-Identifier: Apache-2.0
// One small kernel for each function of common/cuda/ptx.cuh and ptx_sm90.cuh. Compiled for the CPU into _host_exec and
// for a GPU into a library of its own, so that tests/host_exec can compare both with what the PTX ISA says.
#pragma once
#include <driver_types.h>

#include <cstddef>

extern "C" {
// The names, one after the other, null at the end.
__attribute__((visibility("default"))) const char* dit_probe_name(int index);
// How many bytes a probe reads and writes. False for an unknown name.
__attribute__((visibility("default"))) bool dit_probe_sizes(const char* name, size_t* in, size_t* out);
__attribute__((visibility("default"))) cudaError_t dit_probe(const char* name, const void* in, void* out,
                                                             cudaStream_t stream);
}
