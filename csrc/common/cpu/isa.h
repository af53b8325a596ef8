// SPDX-License-Identifier: Apache-2.0
// Every file csrc/ops/*/*_cpu.cpp is compiled once per instruction set, each time into its own namespace
// dit::<DIT_ISA>; the best one this machine has is chosen at run time.
#pragma once
#include <cstdint>

namespace dit {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

bool isa_supported(Isa isa);
Isa isa_in_use();
void isa_use(Isa isa);  // isa_supported(isa) must hold

}  // namespace dit

// Declares `void name(const Args&, int64_t begin, int64_t end)` for every instruction set, and a dit::name that calls
// the one in use. The work items begin..end are what the op's header says.
#if defined(__x86_64__) || defined(_M_X64)
#define DIT_CPU_KERNEL(name, Args)                                                              \
  namespace portable { void name(const Args& a, int64_t begin, int64_t end); }                  \
  namespace avx2 { void name(const Args& a, int64_t begin, int64_t end); }                      \
  namespace avx512 { void name(const Args& a, int64_t begin, int64_t end); }                    \
  inline void name(const Args& a, int64_t begin, int64_t end) {                                 \
    switch (isa_in_use()) {                                                                     \
      case Isa::avx512: return avx512::name(a, begin, end);                                     \
      case Isa::avx2: return avx2::name(a, begin, end);                                         \
      case Isa::portable: return portable::name(a, begin, end);                                 \
    }                                                                                           \
  }
#else
#define DIT_CPU_KERNEL(name, Args)                                                              \
  namespace portable { void name(const Args& a, int64_t begin, int64_t end); }                  \
  inline void name(const Args& a, int64_t begin, int64_t end) { portable::name(a, begin, end); }
#endif
