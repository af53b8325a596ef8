// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "ops/gated_residual_adaln/gated_residual_adaln.h"

namespace dit {

void run(const GatedResidualAdalnForward& args);  // on the CPU

}  // namespace dit
