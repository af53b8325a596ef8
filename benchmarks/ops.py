# SPDX-License-Identifier: Apache-2.0
"""Times ops forward and backward beside eager PyTorch and torch.compile: the same run, alternating, medians.

Parity is checked first; what is wrong is not timed. A row's ratio is the peer's median over ours: above 1 we are
faster. GB/s is the least traffic of the op (its spec's cost) over the median.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import TEMPERATURES, Step, time_alternating
from dit_fast.ops import use_backend
from dit_fast.ops._core import Case, Spec
from dit_fast.parity import check_case

PEERS = ("eager", "compile")
"""The reference in eager PyTorch, and through torch.compile."""


@dataclass(frozen=True)
class Row:
    """One implementation of one op in one direction. Milliseconds are medians; spread is (p75 - p25) / median.

    `l2` is "cold" or "warm" on a GPU; `share` is of the bandwidth of a plain copy in the same run. `tflops` counts the
    useful operations of the spec's cost, 2 a multiply-add.
    """

    op: str
    case: str
    dtype: str
    direction: str
    l2: str
    backend: str
    ms: float
    spread: float
    gbytes_per_s: float
    tflops: float
    share: float
    ratio_to_eager: float


def steps(spec: Spec, inputs: dict[str, Any], backend: str) -> tuple[Step, ...]:
    """A forward without gradients, and a backward alone (its forward is run once) where the op has one."""
    reference = backend in PEERS
    function = spec.timed.get(backend if reference else "kernel", spec.reference if reference else spec.function)
    if backend == "compile":
        function = torch.compile(function, fullgraph=True, dynamic=False)
    context = "reference" if reference else backend
    leaves = {k: v.detach().requires_grad_(k in spec.gradients) for k, v in inputs.items() if isinstance(v, Tensor)}

    def forward() -> object:
        with use_backend(context), torch.no_grad():
            return function(**inputs)

    if not spec.gradients:
        return (forward,)
    with use_backend(context):
        outputs = function(**{**inputs, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.randn(o.shape, dtype=o.dtype, device=o.device) for o in outputs]
    wanted = [leaves[k] for k in spec.gradients if k in leaves]

    def backward() -> object:
        return torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True)

    return forward, backward


def passes(spec: Spec, backend: str, dtype: torch.dtype, device: str) -> bool:
    """Whether a backend is right on a small case; says so where not."""
    wrong = [row for row in check_case(spec, backend, dtype, spec.cases[1], device) if not row.passed]
    for row in wrong:
        print(f"not timed: {row}")
    return not wrong


def bench(
    spec: Spec,
    case: Case,
    dtype: torch.dtype,
    backends: list[str],
    libraries: Sequence[str],
    peers: Sequence[str],
    device: str,
    rounds: int,
    copy: float,
) -> Iterator[Row]:
    """Rows of one case: each backend that passes parity, the libraries that can run, the peers; eager is the measure.

    `copy` is the machine's copy bandwidth in GB/s (benchmarks.timing).
    """
    backends = [backend for backend in backends if passes(spec, backend, dtype, device)]
    torch.compiler.reset()  # another case's graphs count towards the limit of compilations
    inputs = spec.make(case, dtype, device)
    made: dict[str, tuple[Step, ...]] = {}
    for name in dict.fromkeys([*backends, *libraries, "eager", *peers]):
        try:
            made[name] = steps(spec, inputs, name)
            for step in made[name]:
                step()
        except RuntimeError as reason:
            if name not in libraries:
                raise
            made.pop(name, None)
            print(f"{spec.op.name}: {name} cannot run this case: {str(reason).splitlines()[0]}")
    cost = spec.cost(case.dims, dtype.itemsize)
    for i, direction in enumerate(("forward", "backward") if spec.gradients else ("forward",)):
        moved, flops = (
            (cost.forward_bytes, cost.forward_flops) if direction == "forward"
            else (cost.backward_bytes, cost.backward_flops)
        )  # fmt: skip
        for l2 in TEMPERATURES[device]:
            times = time_alternating({name: functions[i] for name, functions in made.items()}, rounds, device, l2)
            eager = median(times["eager"])
            for name, values in times.items():
                middle, ordered = median(values), sorted(values)
                spread = (ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]) / middle
                rate = moved / middle / 1e9
                yield Row(
                    spec.op.name, case.name, str(dtype).removeprefix("torch."), direction, l2, name,
                    middle * 1e3, spread, rate, flops / middle / 1e12, rate / copy, eager / middle,
                )  # fmt: skip
