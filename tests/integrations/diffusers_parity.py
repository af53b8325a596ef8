# SPDX-License-Identifier: Apache-2.0
"""A diffusers model before and after `patch`: outputs and all gradients, against float64."""

import copy
from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dit_fast import ops
from dit_fast.parity import ALLOWANCE, compare, distance

OPS = ("adaln", "gated_residual", "gated_residual_adaln", "patch_embed")


def at(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in `dtype`, with the modules in float32 that `from_pretrained` keeps so."""
    model = copy.deepcopy(model).to(dtype)
    kept = () if dtype == torch.float64 else getattr(model, "_keep_in_fp32_modules", None) or ()
    kept = (*kept, "time_embeddings")  # Kandinsky's, which computes in float32 whatever comes
    for name, parameter in model.named_parameters():
        if any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.float()
    return model


def run(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs, and the gradients of every parameter and of every input with tokens, for a fixed cotangent."""
    inputs = {k: v.clone().requires_grad_() if _is_tokens(v) else v for k, v in inputs.items()}
    torch.manual_seed(0)  # DiT drops labels by chance
    out = model(**inputs, return_dict=False)[0]
    outputs = list(out) if isinstance(out, list | tuple) else [out]
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(o.shape, generator=generator).bfloat16().to(o.dtype) for o in outputs]
    leaves = {k: v for k, v in inputs.items() if _is_tokens(v)} | dict(model.named_parameters())
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
    used = {k: g for k, g in zip(leaves, gradients, strict=True) if g is not None}
    return {f"out{i}": o.detach() for i, o in enumerate(outputs)} | used


def double(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: double(v) for k, v in value.items()}
    if isinstance(value, list):
        return [double(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


Tensors = dict[str, Tensor]


def failures(got: Tensors, eager: Tensors, true: Tensors, dtype: torch.dtype) -> list[str]:
    """What is further from float64 than the unpatched model is, beyond parity's allowance.

    Outputs and inputs' gradients one by one. Parameters' gradients, each divided by its size, joined to one tensor: of
    a hundred small tensors a few exceed any allowance by chance, and a wrong one stands out in the joint one. Where
    the true gradient is zero (a key's bias under softmax) there is rounding noise alone; it may not grow.
    """
    assert got.keys() == eager.keys() == true.keys()
    found = []
    joint: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, value in true.items():
        assert got[name].dtype == eager[name].dtype and got[name].shape == eager[name].shape, name
        noise = distance(eager[name], value)["rms"]
        if noise > 0.5 or not value.any():
            if distance(got[name], value)["rms"] > ALLOWANCE["max"] * noise:
                found.append(f"{name}: noise grew")
        elif "." not in name and value.dim() > 2:
            ratio = compare(got[name], eager[name], value, dtype)[2]
            if not ratio <= 1:
                found.append(f"{name}: {ratio:.2f} of what is allowed")
        else:
            size = value.square().mean().sqrt()
            joint.append(tuple((t[name].double() / size).flatten() for t in (got, eager, true)))
    ratio = compare(*(torch.cat(tensors) for tensors in zip(*joint, strict=True)), dtype)[2]
    if not ratio <= 1:
        worst = max(range(len(joint)), key=lambda i: distance(joint[i][0], joint[i][2])["rms"])
        found.append(f"gradients of parameters: {ratio:.2f} of what is allowed, worst {worst}")
    return found


@contextmanager
def counted(monkeypatch: Any) -> Any:
    """How often each op is called."""
    calls: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in OPS:
            patch.setattr(ops, name, _spy(name, getattr(ops, name), calls))
        yield calls


def _spy(name: str, op: Any, calls: Counter[str]) -> Any:
    def spy(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return op(*args, **kwargs)

    return spy


def _is_tokens(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2
