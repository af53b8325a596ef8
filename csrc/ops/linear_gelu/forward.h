// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "ops/linear_gelu/linear_gelu.h"

namespace dit {

void run(const Linear& args);  // on the CPU

}  // namespace dit
