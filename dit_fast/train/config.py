# SPDX-License-Identifier: Apache-2.0
"""What a training run is told: one dataclass, which YAML files, flags and checkpoints all speak."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from dit_fast.models import DiT, DiT_models

from . import values
from .values import fail, nearest


@dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults are the paper's recipe (DiT, section 4; arXiv 2212.09748).

    Numbers may be given as text ("1e-4", which YAML takes for text) and are then read.

    Attributes:
        data: a folder of class folders of images, a Hugging Face dataset (a folder or a name), a latent cache of
            `dit-fast encode`, or "digits".
        data_kind: what `data` is; "auto" looks.
        image_size: height and width that images are cropped to, in pixels; ignored for latents.
        flip: mirror each image with probability 1/2.
        image_column, label_column, split: of a Hugging Face dataset.
        workers: processes that load data, per rank.
        model: a name of `DiT_models`, or "DiT" with all sizes in `model_args`.
        model_args: arguments of `DiT` over the model's own, as {"hidden_size": 96}.
        num_classes: None takes the data's; 0 trains without labels.
        class_dropout_prob: chance that a label becomes the null label.
        objective: "ddpm" (noise, learned variance) or "flow" (velocity along a straight path, SiT, arXiv 2401.08740).
        flow_times: how `flow` draws times: "uniform" or "logit_normal".
        noise_schedule: of "ddpm": "linear" or "squaredcos_cap_v2".
        steps: updates of the weights.
        batch_size: images an update, over all ranks and micro-batches.
        accumulate: micro-batches an update.
        lr, betas, weight_decay: AdamW's.
        warmup: updates over which `lr` rises linearly from 0.
        lr_schedule: "constant", or "cosine" to 0 at the last step.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        ema: decay of the averaged weights, which start from the initial ones.
        seed: of initial weights, data order, flips, times, noise and label dropout.
        precision: "float32"; "bf16": float32 weights under autocast; "pure_bf16": bf16 weights, float32 masters.
        tf32: let float32 products run as TF32 where the GPU has it.
        checkpointing: recompute activations in the backward.
        compile: False, True, or a mode of `torch.compile`.
        parallel: "ddp" or "fsdp" (FSDP2, a group per block); one process needs neither.
        shard: ranks that share one copy of the weights under "fsdp"; 0: all of them.
        out: the run's folder.
        resume: "auto" goes on from the newest whole checkpoint in `out`; "never" refuses a folder that has one; or the
            path of a checkpoint.
        save_every, keep: updates between checkpoints (0: none); how many of the newest are kept (0: all).
        log_every: updates between records.
        sample_every, sample_steps, sample_scale, sample_count: images drawn with the averaged weights each so many
            updates (0: never), their steps, guidance scale and number.
        tensorboard: write event files; None: where tensorboard is installed.
        wandb: a project to log to (needs wandb); None: no.
        progress: a bar on standard error (a line a record where that is no terminal).
        peak_tflops: dense peak of one device for the model FLOPs utilisation; None: the data sheet's under bf16, where
            the GPU is a known one.

    Raises:
        ValueError: a field is of the wrong type or out of range, or two do not go together.
    """

    data: str = ""
    data_kind: Literal["auto", "folder", "dataset", "latents", "digits"] = "auto"
    image_size: int = 256
    flip: bool = True
    image_column: str = "image"
    label_column: str = "label"
    split: str = "train"
    workers: int = 4
    model: str = "DiT-XL/2"
    model_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    class_dropout_prob: float = 0.1
    objective: Literal["ddpm", "flow"] = "ddpm"
    flow_times: Literal["uniform", "logit_normal"] = "uniform"
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    steps: int = 400_000
    batch_size: int = 256
    accumulate: int = 1
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float = 0.0
    ema: float = 0.9999
    seed: int = 0
    precision: Literal["float32", "bf16", "pure_bf16"] = "bf16"
    tf32: bool = True
    checkpointing: bool = False
    compile: bool | str = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    shard: int = 0
    out: str = "runs/train"
    resume: str = "auto"
    save_every: int = 10_000
    keep: int = 3
    log_every: int = 100
    sample_every: int = 10_000
    sample_steps: int = 50
    sample_scale: float = 4.0
    sample_count: int = 16
    tensorboard: bool | None = None
    wandb: str | None = None
    progress: bool = True
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        for name, hint in HINTS.items():
            object.__setattr__(self, name, values.read(name, hint, getattr(self, name)))
        check_ranges(self)
        check_model(self)
        check_together(self)


HINTS: dict[str, Any] = get_type_hints(TrainConfig)
"""Field to type."""

AT_LEAST = {
    "image_size": 1, "workers": 0, "num_classes": 0, "steps": 1, "batch_size": 1, "accumulate": 1, "weight_decay": 0,
    "warmup": 0, "max_grad_norm": 0, "seed": 0, "shard": 0, "save_every": 0, "keep": 0, "log_every": 1,
    "sample_every": 0, "sample_steps": 1, "sample_scale": 0, "sample_count": 1,
}  # fmt: skip

COMPILE_MODES = ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of `torch.compile`."""

OF_THE_DATA = {
    "input_size": "data", "in_channels": "data", "num_classes": "num_classes",
    "class_dropout_prob": "class_dropout_prob",
}  # fmt: skip
"""Arguments of DiT that `model_args` may not hold, and the field each follows from."""

DIT_HINTS = {k: v for k, v in get_type_hints(DiT.__init__).items() if k != "return" and k not in OF_THE_DATA}


def check_ranges(config: TrainConfig) -> None:
    for name, least in AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not least <= value < math.inf:
            fail(name, f"at least {least}", value)
    for name in ("lr", "peak_tflops"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            fail(name, "above 0", value)
    for name in ("ema", "class_dropout_prob"):
        if not 0 <= getattr(config, name) <= 1:
            fail(name, "from 0 to 1", getattr(config, name))
    if not all(0 <= beta < 1 for beta in config.betas):
        fail("betas", "two numbers from 0 up to, but not, 1", config.betas)
    if isinstance(config.compile, str) and config.compile not in COMPILE_MODES:
        options = f"true, false or one of {', '.join(COMPILE_MODES)}"
        fail("compile", options, config.compile, nearest(config.compile, COMPILE_MODES))


def check_model(config: TrainConfig) -> None:
    """The name and each of `model_args`."""
    names = ["DiT", *DiT_models]
    if config.model not in names:
        fail("model", f"one of {', '.join(names)}", config.model, nearest(config.model, names))
    if config.model == "DiT" and not config.model_args:
        fail("model_args", "sizes (hidden_size=96,depth=3) where `model` is DiT", config.model_args)
    arguments = {}
    for key, value in config.model_args.items():
        if key in OF_THE_DATA:
            fail("model_args", f"without {key}, which follows from `{OF_THE_DATA[key]}`", config.model_args)
        if key not in DIT_HINTS:
            fail("model_args", f"of arguments of DiT ({', '.join(DIT_HINTS)})", key, nearest(str(key), DIT_HINTS))
        arguments[key] = values.read(f"model_args.{key}", DIT_HINTS[key], value)
    object.__setattr__(config, "model_args", arguments)


def check_together(config: TrainConfig) -> None:
    """What two fields must agree on."""
    if config.batch_size % config.accumulate:
        fail("batch_size", f"a multiple of `accumulate`, {config.accumulate}", config.batch_size)
    if config.shard and config.parallel != "fsdp":
        fail("shard", f"0 where `parallel` is {config.parallel!r}", config.shard)
    if config.flow_times != "uniform" and config.objective != "flow":
        fail("flow_times", f"left alone where `objective` is {config.objective!r}", config.flow_times)
    if config.noise_schedule != "linear" and config.objective != "ddpm":
        fail("noise_schedule", f"left alone where `objective` is {config.objective!r}", config.noise_schedule)
