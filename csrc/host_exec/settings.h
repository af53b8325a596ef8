// SPDX-License-Identifier: Apache-2.0
// What a test chooses before it launches a kernel. Process state, set through the Python module.
#pragma once
#include <cstdint>

namespace host_exec {

// Which of the threads that can run goes next. A correct kernel gives the same result under every order.
enum class Order { ascending, descending, random };

struct Settings {
  Order order = Order::ascending;
  uint64_t seed = 0;            // of the random order
  int multiprocessors = 132;    // what dit::multiprocessors() answers
  int compute_capability = 80;  // what dit::compute_capability() answers, and whose shared memory limit holds
};

inline Settings settings;

// What kernels were compiled with: "none", "address" or "thread".
const char* sanitizer();

// Of the last launch that failed on the calling thread.
const char* last_message();

// Threads of a block of the last launch on the calling thread: which of two kernels it was.
int last_block();

}  // namespace host_exec
