# SPDX-License-Identifier: Apache-2.0
"""A patched model against its unpatched twin: outputs and every gradient, by distance from float64."""

import copy
from contextlib import nullcontext

import torch

from dit_fast.parity import ALLOWANCE, FLOOR_ULPS, distance


def results(model, inputs, dtype=None, autocast=None, seed=0):
    """Outputs and gradients of parameters and inputs (but timesteps), by name, for a fixed cotangent and dropout."""
    model = copy.deepcopy(model).to(dtype) if dtype else copy.deepcopy(model)
    for p in model.parameters():
        p.requires_grad_(True)
    floating = [isinstance(i, torch.Tensor) and i.is_floating_point() for i in inputs]
    inputs = [
        (i.to(dtype) if dtype else i).detach().clone().requires_grad_(i.dim() > 1) if is_float else i
        for i, is_float in zip(inputs, floating, strict=True)
    ]
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        out = model(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(2)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum() for o in outs)
    loss.backward()
    found = {f"out{i}": o.detach() for i, o in enumerate(outs)}
    found |= {f"dinput{i}": x.grad for i, x in enumerate(inputs) if floating[i] and x.dim() > 1}
    return found | {f"d{name}": p.grad for name, p in model.named_parameters()}


def assert_same(patched, unpatched, inputs, dtype=torch.float32, autocast=None):
    """The patched model errs no more than the unpatched one does, beside float64; dtypes are the same.

    Tensors are small here, and a gradient of three samples holds few independent errors: each tensor gets the
    allowance of a maximum, all together that of a mean.
    """
    exact = results(unpatched, inputs, torch.float64)
    eager = results(unpatched, inputs, dtype, autocast)
    got = results(patched, inputs, dtype, autocast)
    assert got.keys() == eager.keys() == exact.keys()
    unit = torch.finfo(autocast or dtype).eps
    largest = max(float(g.abs().max()) for k, g in exact.items() if k.startswith("d") and g is not None and g.numel())
    ours, theirs = [], []
    for name, value in exact.items():
        if value is None:
            assert got[name] is None and eager[name] is None, name
            continue
        assert got[name] is not None, f"{name} has no gradient"
        assert got[name].dtype == eager[name].dtype and got[name].shape == eager[name].shape, name
        if name.startswith("d") and value.numel() and value.abs().max() < unit * largest:
            assert got[name].abs().max() < 8 * unit * largest, name  # 0 but for rounding: of a bias of all keys
            continue
        ours.append(distance(got[name], value))
        theirs.append(distance(eager[name], value))
        for kind, floor in FLOOR_ULPS.items():
            allowed = ALLOWANCE["max"] * theirs[-1][kind] + floor * unit / 2
            assert ours[-1][kind] <= allowed, f"{name}: {kind} error {ours[-1][kind]:.2g}, allowed {allowed:.2g}"
    mean = [sum(d["rms"] ** 2 / len(side) for d in side) ** 0.5 for side in (ours, theirs)]
    assert mean[0] <= ALLOWANCE["rms"] * mean[1] + FLOOR_ULPS["rms"] * unit / 2, f"errors {mean[0]:.2g}, {mean[1]:.2g}"
