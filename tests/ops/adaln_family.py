# SPDX-License-Identifier: Apache-2.0
"""What holds for adaln, gated_residual and gated_residual_adaln alike, checked once for the tests of each.

`given` are an op's tensors by name, `rows` the names of those of shape (N, D).
"""

import pytest
import torch

from dit_fast.ops import use_backend

KERNELS = ("cpu", "triton")


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outputs(function, given, backend):
    with use_backend(backend):
        result = function(**given)
    return list(result) if isinstance(result, tuple) else [result]


def outputs_and_gradients(function, given, backend, leaves=None):
    """Outputs, then the gradients of `leaves` (default: all tensors) of a cost that weighs every element."""
    leaves = list(given.values()) if leaves is None else leaves
    for leaf in leaves:
        leaf.requires_grad_()
    result = outputs(function, given, backend)
    cost = sum((o.float() + i).sin().sum() for i, o in enumerate(result))
    return [*result, *torch.autograd.grad(cost, leaves)]


def check_expanded_rows(function, given, rows, backend):
    """Rows that are one parameter expanded have a stride of 0; their gradient is the sum over the samples."""
    leaves = [given[name][0].clone().requires_grad_() for name in rows]
    given = {**given, **{name: leaf.expand_as(given[name]) for name, leaf in zip(rows, leaves, strict=True)}}
    leaves += [tensor for name, tensor in given.items() if name not in rows]
    wanted, got = (outputs_and_gradients(function, given, b, leaves) for b in ("reference", backend))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def check_autocast(function, given, rows, backend):
    """As PyTorch's layer_norm: float32 inside, so mixed dtypes are legal; gradients in each input's dtype."""
    mixed = {k: v.bfloat16() if k == rows[0] else v for k, v in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_gradients(function, mixed, backend)
    wanted = outputs_and_gradients(function, {k: v.detach().float() for k, v in mixed.items()}, "reference")
    count = len(got) - len(given)
    for a, b in zip(got[:count], wanted[:count], strict=True):
        torch.testing.assert_close(a, b)
    for gradient, b, leaf in zip(got[count:], wanted[count:], mixed.values(), strict=True):
        assert gradient.dtype == leaf.dtype
        torch.testing.assert_close(gradient, b.to(leaf.dtype))


def check_threads(function, given):
    """The number of threads changes no bit; `given` must span several chunks of tokens."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(function, given, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def check_compiled(function, given, backend):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, wanted = (outputs_and_gradients(f, given, backend) for f in (compiled, function))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def check_second_derivative(function, given, op):
    leaves = [v.requires_grad_() for v in given.values()]
    cost = outputs(function, given, "cpu")[-1].square().sum()
    _, gradient, *_ = torch.autograd.grad(cost, leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"{op}: .* no second derivative; use_backend"):
        gradient.sum().backward()


def check_large_mean(function, given, backend):
    """E[x^2] - E[x]^2 in float32 would leave no digit of a spread of 1 around 10,000."""
    given = {**given, "x": given["x"] + 1e4}
    exact = outputs(function, {k: v.double() for k, v in given.items()}, "reference")[-1]
    eager, got = (outputs(function, given, b)[-1] for b in ("reference", backend))
    assert (got - exact).abs().max() <= 2 * (eager - exact).abs().max()
