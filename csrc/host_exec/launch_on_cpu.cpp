// SPDX-License-Identifier: Apache-2.0
#include "host_exec/launch_on_cpu.h"

#include <mutex>

namespace host_exec {
namespace {

thread_local std::string message = "no launch has failed";
thread_local int threads_of_last = 0;
std::mutex one_launch;  // shared memory is static

size_t max_dynamic_bytes(int compute_capability) {
  switch (compute_capability) {
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return 227 << 10;
  }
}

void check_launch(dim3 grid, dim3 block, size_t dynamic_bytes) {
  const size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (threads < 1 || threads > 1024 || block.z > 64) fail("a block of " + to_string(uint3(block)) + " threads");
  if (blocks < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    fail("a grid of " + to_string(uint3(grid)) + " blocks");
  const size_t limit = max_dynamic_bytes(settings.compute_capability);
  if (dynamic_bytes > limit)
    fail(std::to_string(dynamic_bytes) + " bytes of dynamic shared memory; compute capability " +
         std::to_string(settings.compute_capability) + " has " + std::to_string(limit));
}

void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, const Body& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  check_launch(grid, block, dynamic_bytes);
  threads_of_last = int(block.x * block.y * block.z);
  Block b(grid, block, dynamic_bytes);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) b.run(uint3{x, y, z}, body);
}

}  // namespace

cudaError_t launch(dim3 grid, dim3 block, size_t dynamic_bytes, const Body& body) {
  try {
    run_grid(grid, block, dynamic_bytes, body);
    return cudaSuccess;
  } catch (const std::exception& e) {
    message = e.what();
  }
  return cudaErrorLaunchFailure;
}

const char* last_message() { return message.c_str(); }

int last_block() { return threads_of_last; }

const char* sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#elif defined(__SANITIZE_THREAD__)
  return "thread";
#else
  return "none";
#endif
}

}  // namespace host_exec
