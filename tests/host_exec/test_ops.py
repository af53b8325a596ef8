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
REFUSED = {"attention": ("head dim", "the CUDA kernels take bfloat16 and float16")}
"""What an op says of CUDA in general, where that is not one width that vectors do not divide."""

ORDERS = {"ascending": 0, "descending": 0, "random": 11}


@pytest.fixture(params=ORDERS)
def order(request):
    host_exec.set_order(request.param, ORDERS[request.param])
    yield request.param
    host_exec.set_order("ascending")


def test_every_op_with_a_cuda_file_is_here():
    assert set(CUDA_OPS) == {path.parent.name for path in (ROOT / "csrc" / "ops").glob("*/*.cu")}


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
    for note in refused:
        reasons = REFUSED.get(name, ("D must be a multiple of 8",))
        assert any(f"cannot run here: {reason}" in note for reason in reasons), note
    if name in REFUSED:
        assert (len(refused) == len(spec.cases)) == (dtype == torch.float32), refused
    else:
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


@pytest.mark.parametrize(
    "dims",
    [
        {"N": 9, "A": 1, "B": 5, "D": 136, "P": 1, "C": 3},  # tokens that are summed together are of many samples
        {"N": 1, "A": 1, "B": 37, "D": 384, "P": 3, "C": 5},  # 45 features: more than one round, the last one ragged
        {"N": 5, "A": 1, "B": 75, "D": 64, "P": 1, "C": 1920},  # so many features that few groups walk far
    ],
    ids=lambda dims: "-".join(f"{k}{v}" for k, v in dims.items()),
)
def test_final_layer_in_rounds(dims):
    spec = SPECS["final_layer"]
    case = type(spec.cases[0])("rounds", {**dims, "M": 1})
    for dtype in (torch.float32, torch.bfloat16):
        for row in check_case(spec, NAME, dtype, case):
            assert row.passed, row


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2048), (torch.bfloat16, 4096)])
def test_final_layer_at_its_limit(dtype, most):
    """The widest row beside 40 features, whose sums need room of their own; 8 more are refused by name."""
    spec = SPECS["final_layer"]
    dims = {"N": 1, "A": 1, "B": 2, "P": 2, "C": 10, "M": 1}
    for row in check_case(spec, NAME, dtype, type(spec.cases[0])("widest", {**dims, "D": most - 40})):
        assert row.passed, row
    wider = type(spec.cases[0])("too wide", {**dims, "D": most - 32})
    reason = rf"at most {most} together .* got {most - 32} \+ 40"
    with use_backend(NAME), pytest.raises(BackendUnavailable, match=reason):
        spec.function(**spec.make(wider, dtype))


def test_an_error_of_a_launch_is_an_exception():
    x = torch.zeros(1, 2, 12)
    with pytest.raises(RuntimeError, match="adaln: "):  # past the op's own checks, as a direct caller would
        torch.ops.dit_fast_host_exec.adaln(x, x[:, 0], x[:, 0], 1e-6)
