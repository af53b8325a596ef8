# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel on the CPU: all cases of its spec against float64, whatever the order of threads."""

from pathlib import Path

import pytest
import torch

from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import BackendUnavailable
from dit_fast.parity import DTYPES, check_case, poisoned, run
from tests.host_exec.backend import CUDA_OPS, NAME, host_exec

ROOT = Path(__file__).parents[2]
SPECS = {name: specs()[name] for name in CUDA_OPS}
ORDERS = {"ascending": 0, "descending": 0, "random": 11}


@pytest.fixture(params=ORDERS)
def order(request):
    host_exec.set_order(request.param, ORDERS[request.param])
    yield request.param
    host_exec.set_order("ascending")


def test_every_op_with_a_cuda_file_is_here():
    assert set(CUDA_OPS) == {path.stem for path in (ROOT / "csrc" / "ops").glob("*/*.cu")}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", SPECS)
def test_forward_and_gradients(name, dtype, order):
    spec, refused = SPECS[name], []
    for case in spec.cases:
        for row in check_case(spec, NAME, dtype, case):
            if row.passed is None:
                refused.append(row.note)
            else:
                assert row.passed and not row.note, row
    for note in refused:  # only what the op says of CUDA in general
        assert "cannot run here: D must be a multiple of 8" in note, note
    assert len(refused) <= 1


@pytest.mark.parametrize("name", SPECS)
def test_no_bit_depends_on_the_order_of_threads(name):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[2], torch.bfloat16)
    results = []
    for order, seed in (("ascending", 0), ("descending", 0), ("random", 1), ("random", 2)):
        host_exec.set_order(order, seed)
        with use_backend(NAME), poisoned():
            results.append(run(spec.function, inputs, spec.gradients, torch.bfloat16))
    host_exec.set_order("ascending")
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", SPECS)
def test_every_architectures_tuning(name, capability):
    """Chunks of tokens differ with the architecture; each must be right where many chunks meet a ragged end."""
    spec = SPECS[name]
    host_exec.set_compute_capability(capability)
    try:
        for case in (spec.cases[2], spec.cases[3]):
            for row in check_case(spec, NAME, torch.bfloat16, case):
                assert row.passed, row
    finally:
        host_exec.set_compute_capability(80)


@pytest.mark.parametrize("name", ["adaln", "gated_residual", "gated_residual_adaln"])
def test_widths_that_are_no_ones(name):
    """The widest row and one just beyond it, which is refused by name."""
    spec = SPECS[name]
    for dtype, widest in ((torch.float32, 3072), (torch.bfloat16, 6144)):
        for d in (8, 1160, widest):
            case = type(spec.cases[0])(f"D{d}", {"N": 2, "T": 3, "D": d})
            for row in check_case(spec, NAME, dtype, case):
                assert row.passed, row
        wider = type(spec.cases[0])("too wide", {"N": 2, "T": 3, "D": widest + 8})
        with use_backend(NAME), pytest.raises(BackendUnavailable, match=rf"up to {widest} in .* got {widest + 8}"):
            spec.function(**spec.make(wider, dtype))


def test_an_error_of_a_launch_is_an_exception():
    x = torch.zeros(1, 2, 12)
    with pytest.raises(RuntimeError, match="adaln: "):  # past the op's own checks, as a direct caller would
        torch.ops.dit_fast_host_exec.adaln(x, x[:, 0], x[:, 0], 1e-6)
