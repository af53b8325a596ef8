# SPDX-License-Identifier: Apache-2.0
"""What a training run would take on many GPUs: time a step, memory, communication.

It rests on steps measured on one GPU (or on the user's own figure), on datasheets of links, and on how DDP and FSDP2
move bytes (`plan_links`). It invents no speed: without a measured step or a figure from the user it refuses.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dit_fast.models import DiT, count_macs
from dit_fast.train import TrainConfig
from dit_fast.train.memory import estimate_memory

from .plan_gpus import GPUS, Gpu
from .plan_links import BUCKET, Link, ddp_seconds, fsdp_seconds, link_between
from .plan_measured import Measured
from .recipe import Recipe

OPTIMIZER_BYTES = 36
"""A parameter's traffic in one AdamW+EMA pass: weight, gradient, both moments and the average read, all but the
gradient written, in float32."""

GRADIENT_BYTES = {"float32": 4, "bf16": 4, "pure_bf16": 2}
GATHERED_BYTES = {"float32": 4, "bf16": 2, "pure_bf16": 2}
"""Of a parameter as DDP reduces its gradient, and as FSDP2 gathers it; FSDP2 reduces in float32."""


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        model: of `DiT_models`, or such a name and other sizes, as "DiT-S/2:depth=3".
        gpus, nodes: in all; nodes of equal size.
        gpu: a name of `GPUS`.
        batch_size: images a step over all GPUs.
        precision, parallel, checkpointing: as in `TrainConfig`.
        image_size: side of the latents, 32 for 256 pixels.
        steps: of the run.
        step_ms: of one GPU on its share of the batch, in place of a measured figure; or
        mfu: the share of the GPU's peak that its matrix work is assumed to reach.
        efficiency: the share of a link's datasheet bandwidth that collectives are assumed to reach.
        latency_us: assumed of one hop.
    """

    model: str = "DiT-XL/2"
    gpus: int = 8
    gpu: str = "h200"
    nodes: int = 1
    batch_size: int = 256
    precision: Literal["float32", "bf16", "pure_bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpointing: bool = False
    image_size: int = 32
    steps: int = 400_000
    step_ms: float | None = None
    mfu: float | None = None
    efficiency: float = 0.8
    latency_us: float = 5.0

    def check(self) -> None:
        """ValueError where it makes no sense."""
        if self.gpu not in GPUS:
            raise ValueError(f"plan: `--gpu` must be one of {', '.join(GPUS)}, got {self.gpu!r}")
        for name in ("gpus", "nodes", "batch_size", "steps", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan: `--{name.replace('_', '-')}` must be at least 1, got {getattr(self, name)}")
        if self.gpus % self.nodes:
            raise ValueError(f"plan: `--nodes` must divide the {self.gpus} GPUs, got {self.nodes}")
        if self.batch_size % self.gpus:
            raise ValueError(f"plan: `--batch-size` must be a multiple of the {self.gpus} GPUs, got {self.batch_size}")
        for name in ("efficiency", "mfu"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"plan: `--{name}` must be above 0 and at most 1, got {value}")
        if self.step_ms is not None and self.step_ms <= 0:
            raise ValueError(f"plan: `--step-ms` must be above 0, got {self.step_ms}")


@dataclass
class Plan:
    """Milliseconds of a step and bytes of one GPU; `assumptions` is all that was not measured."""

    request: dict[str, Any]
    parameters: int
    images_per_gpu: int
    compute_ms: float
    communication_ms: float
    exposed_ms: float
    step_ms: float
    images_per_s: float
    scaling: float
    hours: float
    mfu: float
    sent_bytes: float
    memory: dict[str, float]
    memory_bytes: float
    fits: bool
    assumptions: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def single_gpu_ms(
    request: Request, images: int, macs: int, measured: Measured | None
) -> tuple[float, str]:
    """A whole step of one GPU on its share of the batch, and where the figure is from.

    Raises:
        ValueError: nothing measured and no figure given.
    """
    if request.step_ms is not None:
        words = f"the step of {images} images on one GPU is {request.step_ms:g} ms, as given (--step-ms)"
        return request.step_ms, words
    again = 4 / 3 if request.checkpointing else 1.0
    if request.mfu is not None:
        peak = peak_of(GPUS[request.gpu], request.precision)
        ms = 1e3 * 6 * macs * images * again / (peak * request.mfu)
        words = f"one GPU reaches {request.mfu:.0%} of {peak / 1e12:.0f} TFLOP/s, recomputation counted"
        return ms, f"{words}, as given (--mfu): not measured"
    if measured is None:
        raise ValueError(
            f"no training step of {request.model} in {request.precision} on a GPU named {request.gpu.upper()} has been"
            " measured in the result files; measure one there (`dit-fast bench train --json FILE`, then `--results"
            " FILE`), or give `--step-ms` or `--mfu`"
        )
    ms, how = measured.step_ms(images)
    words = f"the step of {images} images on one GPU is {ms:.1f} ms: {how} ({measured.source})"
    if request.checkpointing:
        ms, words = ms * again, words + "; times 4/3 for the forward that checkpointing repeats: not measured"
    return ms, words


def memory_of(request: Request, model: DiT) -> tuple[dict[str, float], list[str]]:
    """Bytes by what they hold, and what that rests on."""
    config = TrainConfig(
        batch_size=request.batch_size, precision=request.precision, parallel=request.parallel,
        checkpointing=request.checkpointing,
    )  # fmt: skip
    parts = {name: float(size) for name, size in vars(estimate_memory(model, config, request.gpus)).items() if size}
    note = (
        "memory is reckoned as by `dit-fast train --dry-run`: activations are what the forward keeps for the backward,"
        " workspaces, NCCL's buffers and fragmentation are not counted"
    )
    return parts, [note]


@dataclass(frozen=True)
class Compute:
    """Seconds of one GPU's step on its share of the batch."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.optimizer


def compute_of(request: Request, parameters: int, macs: int, measured: Measured | None) -> tuple[Compute, list[str]]:
    """A step split by what its parts do, and what that rests on."""
    ms, source = single_gpu_ms(request, request.batch_size // request.gpus, macs, measured)
    notes, optimizer = [source], 0.0
    if measured is not None and request.step_ms is None and request.mfu is None:
        optimizer = parameters * OPTIMIZER_BYTES / (measured.copy * 1e9)
        notes.append(
            f"of which the optimizer takes {1e3 * optimizer:.1f} ms: {OPTIMIZER_BYTES} bytes a parameter at that GPU's"
            f" measured {measured.copy:.0f} GB/s"
        )
    passes = 4 if request.checkpointing else 3
    notes.append(f"the backward takes {passes - 1}/{passes} of the rest, as its FLOPs do")
    forward = max(0.0, 1e-3 * ms - optimizer) / passes
    return Compute(forward, (passes - 1) * forward, 1e-3 * ms - passes * forward), notes


@dataclass(frozen=True)
class Communication:
    """Of a step: seconds in all, seconds that computing does not hide, bytes that each GPU sends."""

    total: float
    exposed: float
    sent: float


def communication_of(
    request: Request, parameters: int, units: int, compute: Compute, link: Link
) -> tuple[Communication, list[str]]:
    n, part = request.gpus, (request.gpus - 1) / request.gpus
    if n == 1:
        return Communication(0.0, 0.0, 0.0), []
    if request.parallel == "ddp":
        moved = parameters * GRADIENT_BYTES[request.precision]
        times, sent = ddp_seconds(moved, n, link, compute.backward), 2 * part * moved
        note = f"gradients are reduced in buckets of {BUCKET >> 20} MiB while the backward goes on"
    else:
        gathered, reduced = parameters * GATHERED_BYTES[request.precision], parameters * 4
        times = fsdp_seconds(gathered, reduced, units, n, link, compute.forward, compute.backward)
        sent = part * (2 * gathered + reduced)
        note = f"weights are gathered twice a step in {units} units, the next while one computes"
    rest = f"a hop takes {1e6 * link.latency:g} us; communication does not slow computing"
    return Communication(*times, sent), [note, link.source, rest]


def plan(request: Request, measured: Measured | None = None, link: Link | None = None) -> Plan:
    """The run that `request` describes.

    Args:
        measured: steps on one such GPU.
        link: in place of the datasheet's.

    Raises:
        ValueError: a request that makes no sense, or nothing to tell the time of a step from.
    """
    request.check()
    gpu, images = GPUS[request.gpu], request.batch_size // request.gpus
    model = Recipe(request.model, 1, image_size=request.image_size).shapes()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    macs = count_macs(model, request.image_size, request.image_size)
    compute, assumptions = compute_of(request, parameters, macs, measured)
    link = link or link_between(gpu, request.gpus, request.nodes, request.efficiency, 1e-6 * request.latency_us)
    communication, notes = communication_of(request, parameters, len(model.blocks) + 1, compute, link)
    assumptions += notes
    computing = compute.total
    if request.parallel == "fsdp" and request.gpus > 1:
        computing -= compute.optimizer * (1 - 1 / request.gpus)
        assumptions.append("each GPU updates its share of the weights only")
    memory, notes = memory_of(request, model)
    assumptions += notes
    if measured is not None and images in measured.peaks:
        peak = measured.peaks[images] / 1e9
        assumptions.append(f"a step's peak beyond weights, moments and averages was measured: {peak:.1f} GB")
    step, needed = computing + communication.exposed, sum(memory.values())
    return Plan(
        request=asdict(request), parameters=parameters, images_per_gpu=images, compute_ms=1e3 * computing,
        communication_ms=1e3 * communication.total, exposed_ms=1e3 * communication.exposed, step_ms=1e3 * step,
        images_per_s=request.batch_size / step, scaling=compute.total / step, hours=step * request.steps / 3600,
        mfu=6 * macs * images / step / peak_of(gpu, request.precision), sent_bytes=communication.sent,
        memory=memory, memory_bytes=needed, fits=needed < gpu.memory, assumptions=assumptions,
    )  # fmt: skip


def peak_of(gpu: Gpu, precision: str) -> float:
    return gpu.peak["float32" if precision == "float32" else "bfloat16"]


def text(plan: Plan) -> str:
    """For people."""
    asked, gpu = plan.request, GPUS[plan.request["gpu"]]
    where = f"{asked['gpus']} x {gpu.name}" + (f" in {asked['nodes']} nodes" if asked["nodes"] > 1 else "")
    lines = [
        f"{asked['model']}, {plan.parameters / 1e6:.1f} M parameters, {asked['image_size']} x {asked['image_size']}"
        f" latents, {asked['precision']}, {asked['parallel']}{', checkpointing' if asked['checkpointing'] else ''}",
        f"on {where}, {asked['batch_size']} images a step, {plan.images_per_gpu} a GPU",
        "",
        f"step               {plan.step_ms:10.1f} ms",
        f"  computing        {plan.compute_ms:10.1f} ms",
        f"  communicating    {plan.communication_ms:10.1f} ms, of which {plan.exposed_ms:.1f} ms not hidden",
        f"sent by each GPU   {plan.sent_bytes / 1e9:10.2f} GB a step",
        f"images/s           {plan.images_per_s:10.0f}, {plan.scaling:.0%} of {asked['gpus']} times one GPU",
        f"of peak (MFU)      {plan.mfu:10.1%}",
        f"{asked['steps']} steps".ljust(19) + f"{plan.hours:10.1f} hours",
        f"memory of a GPU    {plan.memory_bytes / 1e9:10.1f} GB of {gpu.memory / 1e9:.0f}"
        f"{'' if plan.fits else ': does not fit'}",
    ]
    lines += [f"  {name.ljust(17)}{size / 1e9:10.1f} GB" for name, size in plan.memory.items()]
    return "\n".join([*lines, "", "assuming", *(f"- {words}" for words in plan.assumptions)])
