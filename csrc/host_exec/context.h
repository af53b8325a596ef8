// SPDX-License-Identifier: Apache-2.0
// Switching between stacks: what makes a fiber. The only assembly of host_exec.
//
// A suspended fiber is one number, its stack pointer; the registers that a function must preserve lie on top of its
// stack, followed by the address at which it goes on.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#error "host_exec switches stacks on x86-64 only"
#endif

namespace host_exec {

// Saves the running context in *save and continues the one in `load`. Defined in scheduler.cpp by the text below.
extern "C" __attribute__((visibility("hidden"))) void host_exec_switch(void** save, void* load);

#define HOST_EXEC_DEFINE_SWITCH                                                        \
  asm(".pushsection .text\n"                                                           \
      ".globl host_exec_switch\n"                                                      \
      ".hidden host_exec_switch\n"                                                     \
      ".type host_exec_switch,@function\n"                                             \
      "host_exec_switch:\n"                                                            \
      "  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"     \
      "  movq %rsp, (%rdi)\n"                                                          \
      "  movq %rsi, %rsp\n"                                                            \
      "  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"           \
      "  ret\n"                                                                        \
      ".size host_exec_switch, .-host_exec_switch\n"                                   \
      ".popsection\n")

// A context that enters `start`, which must not return, on the stack that ends at `top`.
inline void* new_context(char* top, void (*start)()) {
  constexpr int kSavedRegisters = 6;
  auto** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--sp = nullptr;  // where start's caller would be: keeps the stack aligned as at any function's entry
  *--sp = reinterpret_cast<void*>(start);
  for (int i = 0; i < kSavedRegisters; ++i) *--sp = nullptr;
  return sp;
}

}  // namespace host_exec
