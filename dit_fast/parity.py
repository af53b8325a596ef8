# SPDX-License-Identifier: Apache-2.0
"""Parity: each op's kernels against its float64 reference, forward and every gradient, driven by the specs.

The yardstick is eager PyTorch in the same dtype: a kernel passes where its distance from float64 is at most
`ALLOWANCE` times that of the eager computation, plus a floor of a few units of the dtype's rounding. Nothing is
tuned per op. Distances are taken two ways, since each is blind where the other sees: root mean square (a small error
everywhere) and maximum (one wrong element), both relative to the float64 result.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dit_fast.models import DiT
from dit_fast.ops import use_backend
from dit_fast.ops._core import BackendUnavailable, Case, Spec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ALLOWANCE = {"rms": 1.5, "max": 3.0}
"""A kernel may round as often as eager does, in another order: rms errors of two such computations differ by little,
the largest of many random errors by more (the maxima of two equal samples of 1e5 normals differ by up to a third,
and small tensors by more)."""

FLOOR_ULPS = {"rms": 1.0, "max": 4.0}
"""Where eager happens to be exact (a single rounding, a sum of one term), a few roundings are still allowed."""


@dataclass(frozen=True)
class Row:
    """One tensor of one comparison. `ratio` is error over what is allowed; it passes up to 1.

    A backend that cannot run here gives one row with `passed` None and its reason in `note`.
    """

    op: str
    backend: str
    dtype: str
    case: str
    tensor: str
    error: float
    eager_error: float
    ratio: float
    passed: bool | None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an error or ratio that is not finite becomes None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory with NaN as it is allocated, so that an element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


@contextmanager
def no_tf32() -> Iterator[None]:
    """On a GPU, cuDNN and cuBLAS must not round float32 inputs: the yardstick would be a thousand times too long."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def run(
    function: Any, inputs: dict[str, Any], gradients: tuple[str, ...], dtype: torch.dtype, seed: int = 1
) -> dict[str, Tensor]:
    """Outputs `out0..` and gradients `d<name>` of one call, for a random cotangent rounded to `dtype`."""
    leaves = {k: v.detach().requires_grad_(k in gradients) for k, v in inputs.items() if isinstance(v, Tensor)}
    outputs = function(**{**inputs, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(dtype).to(o.device, o.dtype)
        for o in outputs
    ]
    wanted = [k for k in gradients if k in leaves]
    grads = torch.autograd.grad(outputs, [leaves[k] for k in wanted], cotangents) if wanted else ()
    return {
        **{f"out{i}": o.detach() for i, o in enumerate(outputs)},
        **{f"d{k}": g for k, g in zip(wanted, grads, strict=True)},
    }


def distance(got: Tensor, exact: Tensor) -> dict[str, float]:
    """Root mean square and maximum distance from `exact`, relative to it; infinite where a number is missing."""
    if exact.numel() == 0:
        return {"rms": 0.0, "max": 0.0}
    difference = got.detach().to(exact.device, torch.float64) - exact
    if not difference.isfinite().all():
        return {"rms": float("inf"), "max": float("inf")}
    size = exact.square().mean().sqrt().clamp_min(1e-300), exact.abs().max().clamp_min(1e-300)
    return {
        "rms": float(difference.square().mean().sqrt() / size[0]),
        "max": float(difference.abs().max() / size[1]),
    }


def compare(got: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    """(error, eager error, ratio to the allowed error): the worse of the two distances."""
    ours, theirs = distance(got, exact), distance(eager, exact)
    unit = torch.finfo(dtype).eps / 2
    ratios = {k: ours[k] / (ALLOWANCE[k] * theirs[k] + FLOOR_ULPS[k] * unit) for k in ours}
    worst = max(ratios, key=lambda k: ratios[k])
    return ours[worst], theirs[worst], ratios[worst]


def to_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    def exact(value: Any) -> Any:
        if isinstance(value, list):
            return [exact(item) for item in value]
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return {k: exact(v) for k, v in inputs.items()}


def check_case(
    spec: Spec, backend: str, dtype: torch.dtype, case: Case, device: str = "cpu"
) -> list[Row]:
    """Compare one case on one backend. A backend that cannot run it gives one row that says why, not failed."""
    inputs = spec.make(case, dtype, device)
    with use_backend("reference"), no_tf32():
        exact = run(spec.reference, to_float64(inputs), spec.gradients, dtype)
        eager = run(spec.reference, inputs, spec.gradients, dtype)
    name = str(dtype).removeprefix("torch.")
    try:
        with use_backend(backend), poisoned():
            got = run(spec.function, inputs, spec.gradients, dtype)
    except BackendUnavailable as reason:
        return [Row(spec.op.name, backend, name, case.name, "-", 0.0, 0.0, 0.0, None, f"n/a: {reason}")]
    rows = []
    for key, value in exact.items():
        same_kind = got[key].shape == value.shape and got[key].dtype == eager[key].dtype
        measured = compare(got[key], eager[key], value, dtype) if same_kind else (math.inf, 0.0, math.inf)
        error, eager_error, ratio = measured
        note = "" if same_kind else f"shape or dtype: {tuple(got[key].shape)} {got[key].dtype}"
        rows.append(Row(spec.op.name, backend, name, case.name, key, error, eager_error, ratio, ratio <= 1.0, note))
    return rows


def enliven(model: DiT, seed: int = 0) -> DiT:
    """Give zero-initialised layers live values: a fresh model's output is 0, and parity on it would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.dim() == 1 or "adaLN" in name or "final" in name):
                noise = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.add_(noise.to(parameter))
    return model


def check_model(model: DiT, inputs: tuple[Tensor, ...], backend: str, dtype: torch.dtype) -> list[Row]:
    """Compare a whole model, output and every parameter's gradient, with itself in float64 on the reference."""
    exact_model, own = copy.deepcopy(model).double(), copy.deepcopy(model).to(dtype)
    x, *rest = inputs
    x = x.to(dtype)
    name, case = str(dtype).removeprefix("torch."), f"{model.conditioning}, {tuple(x.shape)}"
    with no_tf32():
        exact = _run_model(exact_model, (x.double(), *rest), "reference", dtype)
        eager = _run_model(own, (x, *rest), "reference", dtype)
    try:
        with poisoned(), no_tf32():
            got = _run_model(own, (x, *rest), backend, dtype)
    except BackendUnavailable as reason:
        return [Row("model", backend, name, case, "-", 0.0, 0.0, 0.0, None, f"n/a: {reason}")]
    rows = []
    for key, value in exact.items():
        error, eager_error, ratio = compare(got[key], eager[key], value, dtype)
        rows.append(Row("model", backend, name, case, key, error, eager_error, ratio, ratio <= 1.0))
    return rows


def _run_model(
    model: DiT, inputs: tuple[Tensor, ...], backend: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    with use_backend(backend):
        out = model(*inputs)
        generator = torch.Generator().manual_seed(2)
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype).to(out)
        grads = torch.autograd.grad(out, list(parameters.values()), cotangent)
    return {"out": out.detach(), **{f"d{k}": g for k, g in zip(parameters, grads, strict=True)}}
