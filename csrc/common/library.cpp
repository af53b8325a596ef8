// SPDX-License-Identifier: Apache-2.0
// Opens the operator namespace and answers which instruction set the CPU kernels use.
#include <string>

#include "common/cpu/isa.h"
#include "common/stable.h"

namespace dit {
namespace {

constexpr std::pair<Isa, const char*> kNames[] = {
    {Isa::avx512, "avx512"}, {Isa::avx2, "avx2"}, {Isa::portable, "portable"}};

std::string isa_available() {
  std::string names;
  for (auto [isa, name] : kNames)
    if (isa_supported(isa)) names += (names.empty() ? "" : ",") + std::string(name);
  return names;
}

std::string isa_get() {
  for (auto [isa, name] : kNames)
    if (isa == isa_in_use()) return name;
  return "";
}

void isa_set(std::string wanted) {
  for (auto [isa, name] : kNames)
    if (wanted == name && isa_supported(isa)) return isa_use(isa);
  STD_TORCH_CHECK(false, "isa_set: this machine has ", isa_available(), ", got ", wanted);
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY(dit_fast_native, m) {
  m.def("isa_available() -> str");
  m.def("isa_get() -> str");
  m.def("isa_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CompositeExplicitAutograd, m) {
  m.impl("isa_available", TORCH_BOX(&dit::isa_available));
  m.impl("isa_get", TORCH_BOX(&dit::isa_get));
  m.impl("isa_set", TORCH_BOX(&dit::isa_set));
}
