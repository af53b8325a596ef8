# SPDX-License-Identifier: Apache-2.0
"""Times ops forward and backward beside eager PyTorch, torch.compile and libraries: one run, alternating, medians.

Parity is checked first; what is wrong is not timed. A row's ratio is eager's median over its own: above 1 it is faster.
GB/s is the least traffic of the op (its spec's cost) over the median.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import Case, Spec, tensors_in
from dit_fast.parity import check_case, distance, no_tf32, run, to_float64

from .memory_use import launches, peak_of_call
from .peers.ops import COMPILED, LIBRARIES, PEERS
from .schema import Row
from .session import Session, with_ratios
from .timing import TEMPERATURES, Step

ROUNDS = 15
BATCH = 8


def rows(session: Session) -> Iterator[Row]:
    """Every op asked for, at the batches and dtypes asked for, at the shapes of the paper's models."""
    options = session.options
    for name in options.ops or specs():
        spec = specs()[name]
        for session.batch in options.batches or (BATCH,):
            for dtype in session.dtypes():
                backends = options.backends or kernels(spec, session.device)
                others = libraries(session, spec, dtype)
                for case in spec.bench(session.batch):
                    if session.out_of_time():
                        return
                    yield from bench(session, spec, case, dtype, backends, others)


def kernels(spec: Spec, device: str) -> list[str]:
    """The backends of an op that are kernels of this package, on this device."""
    return ["cpu"] if device == "cpu" else [b for b in ("cuda", "triton") if b == "triton" or b in spec.op.native]


def libraries(session: Session, spec: Spec, dtype: torch.dtype) -> list[str]:
    """The peers of an op that can run here; those that cannot are put among the absent with their reason."""
    present, options = [], session.options
    made = list(spec.make(spec.bench(1)[0], dtype, session.device).values()) if spec.op.libraries else []
    reasons = {name: spec.op.why_not(name, list(tensors_in(made))) for name in spec.op.libraries}
    reasons |= {name: peer.why_not(session.device) for name, peer in LIBRARIES.items() if peer.op == spec.op.name}
    for name, reason in reasons.items():
        if options.peers and name not in options.peers:
            continue
        if reason is None:
            present.append(name)
        else:
            session.absent[f"ops: {spec.op.name}: {name}"] = reason
    return [*(name for name in ("eager", *COMPILED) if wanted(options.peers, name)), *present]


def wanted(peers: Sequence[str], name: str) -> bool:
    """Without a choice: all but max-autotune, which compiles for minutes."""
    return name in peers if peers else name != "compile-max-autotune"


def function_of(spec: Spec, backend: str) -> Any:
    """What is called for a backend or peer, with the op's arguments."""
    if backend in LIBRARIES:
        return LIBRARIES[backend].function
    if backend == "eager" or backend in COMPILED:
        function = spec.timed.get("eager" if backend == "eager" else "compile", spec.reference)
        return torch.compile(function, fullgraph=True, dynamic=False, **COMPILED[backend]) if backend in COMPILED \
            else function  # fmt: skip
    return spec.timed.get("kernel", spec.function)


def steps(spec: Spec, inputs: dict[str, Any], backend: str) -> dict[str, Step]:
    """A forward without gradients, and a backward alone (its forward is run once) where the op has one."""
    context = "reference" if backend in PEERS else backend
    function = function_of(spec, backend)
    leaves = {k: v.detach().requires_grad_(k in spec.gradients) for k, v in inputs.items() if isinstance(v, Tensor)}

    def forward() -> object:
        with use_backend(context), torch.no_grad():
            return function(**inputs)

    if not spec.gradients or (backend in LIBRARIES and not LIBRARIES[backend].differentiable):
        return {"forward": forward}
    with use_backend(context):
        outputs = function(**{**inputs, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.randn(o.shape, dtype=o.dtype, device=o.device) for o in outputs]
    targets = [leaves[k] for k in spec.gradients if k in leaves]

    def backward() -> object:
        return torch.autograd.grad(outputs, targets, cotangents, retain_graph=True)

    return {"forward": forward, "backward": backward}


def ready(
    session: Session, spec: Spec, inputs: dict[str, Any], name: str, ours: bool, dtype: str
) -> dict[str, Step] | None:
    """Steps that ran once, compiled; a peer that fails on this case is listed as absent: it is another's code."""
    try:
        made = steps(spec, inputs, name)
        for step in made.values():
            step()
    except Exception as error:
        if ours or name == "eager":
            raise
        session.absent[f"ops: {spec.op.name}: {name}, {dtype}"] = f"failed: {str(error).splitlines()[0][:300]}"
        return None
    return made


def check(
    session: Session, spec: Spec, backends: Sequence[str], dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Errors against float64 by backend and direction, on a small case of the spec: of eager, and of those backends of
    ours that can run and are right. The others are listed with their reason."""
    found: dict[str, dict[str, float]] = {}
    for backend in backends:
        compared = check_case(spec, backend, dtype, spec.cases[1], session.device)
        where = f"ops: {spec.op.name}: {backend}, {str(dtype).removeprefix('torch.')}"
        wrong = [row for row in compared if row.passed is False]
        if wrong:
            session.refuse(where, f"{wrong[0].tensor} of {wrong[0].case} is {wrong[0].ratio:.2f} times what is allowed")
        elif compared[0].passed is None:
            session.absent[where] = compared[0].note
        else:
            found[backend] = by_direction({row.tensor: row.error for row in compared})
            found.setdefault("eager", by_direction({row.tensor: row.eager_error for row in compared}))
    return found


def by_direction(errors: dict[str, float]) -> dict[str, float]:
    """The worst of the outputs, and of the gradients."""
    groups: dict[str, list[float]] = {"forward": [], "backward": []}
    for tensor, error in errors.items():
        groups["forward" if tensor.startswith("out") else "backward"].append(error)
    return {direction: max(values) for direction, values in groups.items() if values}


def peer_errors(spec: Spec, names: Sequence[str], dtype: torch.dtype, device: str) -> dict[str, dict[str, float]]:
    """The same of peers, none of which has to pass: their error stands beside their speed.

    Ops that write their arguments are compared through the functional reference only: nothing for their peers.
    """
    if not spec.gradients:
        return {}
    inputs = spec.make(spec.cases[1], dtype, device)
    found = {}
    with use_backend("reference"), no_tf32():
        exact = run(spec.reference, to_float64(inputs), spec.gradients, dtype)
        for name in names:
            if name in COMPILED:  # another shape would be another compilation: it is the reference, compiled
                continue
            backward = name not in LIBRARIES or LIBRARIES[name].differentiable
            with use_backend(name if name in spec.op.libraries else "reference"):
                got = run(function_of(spec, name), inputs, spec.gradients if backward else (), dtype)
            found[name] = by_direction({k: distance(v, exact[k])["rms"] for k, v in got.items()})
    return found


def bench(
    session: Session, spec: Spec, case: Case, dtype: torch.dtype, backends: Sequence[str], peers: Sequence[str]
) -> Iterator[Row]:
    """Rows of one case: each backend that passes parity, then the peers; eager, always there, is the measure."""
    device, name = session.device, str(dtype).removeprefix("torch.")
    errors = check(session, spec, backends, dtype)
    backends = [backend for backend in backends if backend in errors]
    names = list(dict.fromkeys([*backends, "eager", *peers]))
    torch.compiler.reset()  # another case's graphs count towards the limit of compilations
    inputs = spec.make(case, dtype, device)
    made = {n: made_steps for n in names if (made_steps := ready(session, spec, inputs, n, n in backends, name))}
    errors |= peer_errors(spec, [n for n in made if n not in backends], dtype, device)
    cost = spec.cost(case.dims, dtype.itemsize)
    for direction in ("forward", "backward") if spec.gradients else ("forward",):
        moved, flops = (
            (cost.forward_bytes, cost.forward_flops) if direction == "forward"
            else (cost.backward_bytes, cost.backward_flops)
        )  # fmt: skip
        present = {n: functions[direction] for n, functions in made.items() if direction in functions}
        memory = {n: peak_of_call(function, device) for n, function in present.items()}
        counts = {n: launches(function) for n, function in present.items()} if device == "cuda" else {}
        for l2 in TEMPERATURES[device]:
            times = session.time(present, session.options.rounds or ROUNDS, l2)
            yield from with_ratios(
                session.row(
                    times[n], moved, flops, kind="ops", name=spec.op.name, case=case.name, dims=dict(case.dims),
                    dtype=name, direction=direction, l2=l2, backend=n, ours=n in backends,
                    peak_bytes=memory[n][0], memory_method=memory[n][1], launches=counts.get(n),
                    error=errors.get(n, {}).get(direction), error_eager=errors.get("eager", {}).get(direction),
                )
                for n in present
            )  # fmt: skip
