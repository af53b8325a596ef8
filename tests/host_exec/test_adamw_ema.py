# SPDX-License-Identifier: Apache-2.0
"""adamw_ema's CUDA kernel on the CPU: what every backend owes (tests/ops, tests/optim); many tensors; direct calls."""

import pytest
import torch

from dit_fast.ops import adamw_ema, use_backend
from tests.host_exec.backend import NAME
from tests.ops import test_adamw_ema as op
from tests.optim import test_adamw_ema as optimizer

native = torch.ops.dit_fast_host_exec.adamw_ema
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "emas", "copies")


@pytest.mark.parametrize(
    "check,arguments",
    [
        (op.test_every_shape_beside_the_reference, (None,)),
        (op.test_every_shape_beside_the_reference, (0.5,)),
        (op.test_memory_around_and_between_is_left_alone, ("aligned",)),
        (op.test_memory_around_and_between_is_left_alone, ("misaligned",)),
        (op.test_memory_around_and_between_is_left_alone, ("strided",)),
        (op.test_tensors_that_lie_in_memory_each_its_own_way, ()),
        (op.test_low_precision_parameters_are_computed_in_float32_and_rounded_once, (torch.bfloat16,)),
        (op.test_low_precision_parameters_are_computed_in_float32_and_rounded_once, (torch.float16,)),
        (op.test_the_copy_is_the_rounded_parameter, (torch.bfloat16, "float32")),
        (op.test_the_copy_is_the_rounded_parameter, (torch.bfloat16, "copy")),
        (op.test_the_copy_is_the_rounded_parameter, (torch.float16, "copy")),
        (op.test_the_learning_rate_may_be_a_tensor_and_the_average_absent, ()),
        (op.test_bias_correction_early_and_late, (0.0,)),
        (op.test_bias_correction_early_and_late, (1e6,)),
        (op.test_autograd_notices_the_write, ()),
        (optimizer.test_a_hundred_steps_in_float32, (1.0,)),
        (optimizer.test_masters_step_where_low_precision_parameters_cannot, ()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_as_every_backend(check, arguments):
    check(NAME, *arguments)


def test_more_tensors_than_a_launch_takes_and_more_elements_than_a_block():
    """56 tensors a launch, 8192 elements a block; empty tensors take no place."""
    shapes = [(i % 5, 3) for i in range(150)] + [(8192,), (8193,), (3, 8190)] + [(7,)] * 20
    given = op.inputs(shapes)
    wanted, got = op.cloned(given), op.cloned(given)
    with use_backend("reference"):
        adamw_ema(**wanted)
    with use_backend(NAME):
        adamw_ema(**got)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "emas"):
        for a, b in zip(got[name], wanted[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def call(given, lr_tensor=None, clip=None, lr=1e-2, beta1=0.9):
    native(*(given[name] for name in LISTS), lr_tensor, clip, lr, beta1, 0.999, 1e-8, 0.1, 0.9)


def test_the_learning_rate_is_read_where_it_lies():
    number, tensor = op.inputs(), op.inputs()
    call(number)
    call(tensor, torch.tensor(1e-2), lr=float("nan"))
    op.assert_equal(tensor, number)
    zero = op.inputs()
    call(zero, beta1=0.0)
    torch.testing.assert_close(zero["exp_avgs"], zero["grads"])
    assert all(p.isfinite().all() for p in zero["params"])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"grads": []}, "`grads` must hold 2 tensors, got 0"),
        ({"steps": [torch.ones(())]}, "`steps` must hold 2 tensors, got 1"),
        ({"exp_avgs": [torch.ones(3).half()] * 2}, "`exp_avgs` has the wrong dtype"),
        ({"emas": [torch.ones(4)] * 2}, "`emas` must have the sizes of `params`"),
        ({"params": [torch.ones(6)[::2]] * 2}, "`params` must be contiguous"),
        ({"steps": [torch.ones(1)] * 2}, "`steps` must have 0 dimensions, got 1"),
        ({"grads": [torch.ones(3).bfloat16()] * 2}, "`grads` must be float32 or of the dtype of `copies`"),
        ({"params": [torch.ones(3).half()] * 2, "copies": [torch.ones(3)] * 2}, "only float32 `params` have `copies`"),
    ],
)
def test_direct_callers_are_told(change, message):
    given = op.inputs(((3,), (3,)))
    with pytest.raises(RuntimeError, match=f"adamw_ema: ({message})"):
        call({**given, **change})
