# SPDX-License-Identifier: Apache-2.0
"""Every op, backend, dtype and case against float64, from the specs (dit_fast/parity.py); opcheck; determinism."""

import pytest
import torch

from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import native
from dit_fast.parity import DTYPES, check_case, poisoned, run

SPECS = specs()
KERNELS = ("cpu", "triton")


def params():
    for name, spec in SPECS.items():
        for backend in KERNELS:
            for dtype in DTYPES:
                yield pytest.param(spec, backend, dtype, id=f"{name}-{backend}-{str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("spec,backend,dtype", list(params()))
def test_forward_and_gradients(spec, backend, dtype):
    for case in spec.cases:
        for row in check_case(spec, backend, dtype, case):
            assert row.passed and not row.note, row


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.op.cpu_module is None])
def test_every_instruction_set(name, isa):
    if isa not in native.instruction_sets():
        pytest.skip(f"this CPU has no {isa}")
    before = native.instruction_set()
    native.set_instruction_set(isa)
    try:
        for dtype in DTYPES:
            for case in SPECS[name].cases:
                for row in check_case(SPECS[name], "cpu", dtype, case):
                    assert row.passed and not row.note, row
    finally:
        native.set_instruction_set(before)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("name", SPECS)
def test_two_runs_are_bit_equal(name, backend):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[1], torch.bfloat16)
    with use_backend(backend), poisoned():
        first, second = (run(spec.function, inputs, spec.gradients, torch.bfloat16) for _ in range(2))
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.gradients])
def test_gradcheck_of_the_reference(name):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[0], torch.float64)
    wanted = [k for k in spec.gradients if inputs.get(k) is not None]
    leaves = [inputs[k].detach().clone().requires_grad_() for k in wanted]
    rest = {k: v for k, v in inputs.items() if k not in wanted}
    assert torch.autograd.gradcheck(
        lambda *t: spec.reference(**dict(zip(wanted, t, strict=True)), **rest), leaves, fast_mode=True
    )
