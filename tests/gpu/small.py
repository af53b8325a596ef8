# SPDX-License-Identifier: Apache-2.0
"""python -m tests.gpu.small [op ...]: every CUDA kernel (of these ops) once on small cases, for compute-sanitizer to
watch (`make gpu`)."""

import sys

import torch

from dit_fast.ops import specs, use_backend
from dit_fast.parity import run

ran = 0
for spec in specs().values():
    if "cuda" not in spec.op.native or spec.op.name not in (sys.argv[1:] or specs()):
        continue
    for dtype in (torch.float32, torch.bfloat16):
        for case in spec.cases:
            inputs = spec.make(case, dtype, "cuda")
            with use_backend("cuda"):
                try:
                    run(spec.function, inputs, spec.gradients, dtype)
                except RuntimeError as reason:
                    if "cannot run here" not in str(reason):
                        raise
                    continue
            ran += 1
torch.cuda.synchronize()
print(f"{ran} cases ran")
assert ran
