// SPDX-License-Identifier: Apache-2.0
#include "common/cpu/isa.h"

#include <atomic>

namespace dit {

bool isa_supported(Isa isa) {
#if defined(__x86_64__) || defined(_M_X64)
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

static std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{isa_supported(Isa::avx512) ? Isa::avx512
                              : isa_supported(Isa::avx2) ? Isa::avx2
                                                         : Isa::portable};
  return isa;
}

Isa isa_in_use() { return current().load(std::memory_order_relaxed); }
void isa_use(Isa isa) { current().store(isa, std::memory_order_relaxed); }

}  // namespace dit
