# SPDX-License-Identifier: Apache-2.0
"""python -m tests.host_exec.sanitized OP...: small cases of each op on a sanitized build; run by test_sanitizers.py.

The process must have the sanitizer's runtime loaded first (build.run_sanitized). A finding ends it with the sanitizer's
exit status; a wrong result with 1.
"""

import sys

import torch

from tests.host_exec.build import load

host_exec = load(sys.argv[1])

from dit_fast.ops import specs  # noqa: E402
from dit_fast.ops._core import Case, tensors_in  # noqa: E402
from dit_fast.parity import check_case  # noqa: E402
from tests.host_exec.backend import NAME  # noqa: E402

SMALL = 40_000  # elements of the largest input; a sanitized fiber is slow
MORE = {"attention": (Case("keys in parts", {"N": 1, "T": 5, "S": 300, "H": 1, "Dh": 72}),)}

# Small cases of kernels that run only where the GPU is of sm_90a: each of attention's ways.
SM90 = {"attention": [{"N": 1, "T": 70, "H": 2, "Dh": 72}, {"N": 1, "T": 5, "S": 260, "H": 1, "Dh": 72}]}

torch.set_num_threads(1)
assert host_exec.sanitizer() == sys.argv[1]
for name in sys.argv[2:]:
    spec, compared = specs()[name], 0
    for dtype, order in ((torch.float32, "ascending"), (torch.bfloat16, "random"), (torch.float16, "descending")):
        host_exec.set_order(order, seed=5)
        for case in (*spec.cases, *MORE.get(name, ())):
            inputs = spec.make(case, dtype)
            if max(tensor.numel() for tensor in tensors_in(list(inputs.values()))) > SMALL:
                continue
            for row in check_case(spec, NAME, dtype, case):
                assert row.passed is not False, row
                compared += row.passed is not None
    host_exec.set_compute_capability(90)
    host_exec.set_multiprocessors(1)
    for dims in SM90.get(name, []):
        host_exec.set_order("random", seed=6)
        for row in check_case(spec, NAME, torch.bfloat16, Case("sm_90a", dims)):
            assert row.passed, row
            compared += 1
    host_exec.set_compute_capability(80)
    print(f"{host_exec.sanitizer()}: {name}: {compared} tensors compared", flush=True)
    assert compared
