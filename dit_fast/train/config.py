# SPDX-License-Identifier: Apache-2.0
"""What a training run is told: one dataclass, which YAML files, flags and checkpoints all speak."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults are the paper's recipe (DiT, section 4; arXiv 2212.09748).

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
        save_every, keep: updates between checkpoints; how many of the newest are kept (0: all).
        log_every: updates between records.
        sample_every, sample_steps, sample_scale, sample_count: images drawn with the averaged weights each so many
            updates (0: never), their steps, guidance scale and number.
        tensorboard: write event files (needs tensorboard).
        wandb: a project to log to (needs wandb); None: no.
        progress: a bar on standard error.
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
    tensorboard: bool = True
    wandb: str | None = None
    progress: bool = True
