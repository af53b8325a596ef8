# SPDX-License-Identifier: Apache-2.0
"""The U-Nets that the paper compares DiT with, beside DiT-XL/2: multiply-adds, images a second, memory of a forward.

Built as diffusers' `UNet2DModel` with random weights, in the shapes of ADM (arXiv 2105.05233, table 4: 256 x 256
pixels) and of LDM-4 (arXiv 2112.10752, table 12: latents of 64 x 64 x 3). diffusers' blocks are not theirs in every
part; what counts here is that the work is of the same kind and amount. The paper's Gflops: 1120 and 103.6.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .flops import flops
from .memory_use import launches, peak_of_call
from .model import Entry, judge, own_step
from .peers.model import eager
from .recipe import Recipe
from .schema import Row
from .session import Session
from .timing import Step

DIT, ROUNDS = "DiT-XL/2", {"cpu": 3, "cuda": 9}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True)
class UNet:
    """`gflops` is the paper's number; `note` says how the shape follows the model it is named after."""

    gflops: float
    side: int
    arguments: dict[str, Any]
    note: str


def _levels(plain: str, attending: str, flags: tuple[bool, ...]) -> tuple[str, ...]:
    return tuple(attending if flag else plain for flag in flags)


UNETS = {
    "ADM": UNet(
        1120, 256,
        {
            "in_channels": 3, "out_channels": 6, "layers_per_block": 2, "attention_head_dim": 64,
            "block_out_channels": (256, 256, 512, 512, 1024, 1024), "resnet_time_scale_shift": "scale_shift",
            "down_block_types": _levels("ResnetDownsampleBlock2D", DOWN[1], (False,) * 3 + (True,) * 3),
            "up_block_types": _levels("ResnetUpsampleBlock2D", UP[1], (True,) * 3 + (False,) * 3),
            "downsample_type": "resnet", "upsample_type": "resnet",
        },
        "256 x 256 pixels; widths, levels, attention at 32, 16 and 8 and residual up- and downsampling as in ADM",
    ),
    "LDM-4": UNet(
        103.6, 64,
        {
            "in_channels": 3, "out_channels": 3, "layers_per_block": 3, "attention_head_dim": 64,
            "block_out_channels": (192, 384, 576, 960),
            "down_block_types": _levels(*DOWN, (False, True, True, True)),
            "up_block_types": _levels(*UP, (True, True, True, False)),
        },
        "latents of 64 x 64 x 3; widths and levels as in LDM-4, a third layer a level for its transformers' MLPs",
    ),
}  # fmt: skip


def build(name: str, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A class-conditional U-Net in evaluation mode.

    Raises:
        ImportError: diffusers is not installed.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("the U-Nets need diffusers: pip install dit_fast[diffusers]") from error
    unet = UNETS[name]
    with torch.device(device):
        model = UNet2DModel(sample_size=unet.side, num_class_embeds=1000, **unet.arguments)
    return model.eval().to(dtype)


def inputs(name: str, batch: int, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    side = UNETS[name].side
    return {
        "sample": torch.randn(batch, 3, side, side).to(device, dtype),
        "timestep": torch.full((batch,), 500.0).to(device),
        "class_labels": torch.zeros(batch, dtype=torch.int64, device=device), "return_dict": False,
    }  # fmt: skip


def macs(name: str) -> int:
    """Multiply-adds of one image, counted on the meta device by PyTorch's FlopCounterMode."""
    return flops(build(name, "meta"), **inputs(name, 1, "meta")) // 2


def step_of(name: str, batch: int, device: str, dtype: torch.dtype) -> Step:
    model, given = build(name, device, dtype), inputs(name, batch, device, dtype)

    def step() -> object:
        with torch.no_grad():
            return model(**given)

    return step


def transformer(session: Session, recipe: Recipe) -> dict[str, Entry]:
    """Ours and eager's DiT with their errors; ours is left out where it is wrong, with its reason."""
    entries = {"auto": Entry(own_step(recipe, "auto", train=False), True), "eager": Entry(eager(recipe, False), False)}
    judge(session, recipe, entries)
    return entries


def rows(session: Session) -> Iterator[Row]:
    """DiT-XL/2 by our kernels and in eager PyTorch, and the U-Nets, taking turns; one case a batch and dtype."""
    for dtype in session.dtypes():
        for batch in session.options.batches or (1,):
            if session.out_of_time():
                return
            yield from bench(session, Recipe(DIT, batch, str(dtype).removeprefix("torch."), session.device))


def bench(session: Session, recipe: Recipe) -> Iterator[Row]:
    device, batch = recipe.device, recipe.batch
    entries = transformer(session, recipe)
    error_eager = entries["eager"].error
    try:
        unets = {name: step_of(name, batch, device, getattr(torch, recipe.dtype)) for name in UNETS}
    except ImportError as reason:
        session.absent["unets: diffusers"], unets = str(reason), {}
    steps = {**{by: entry.step for by, entry in entries.items()}, **unets}
    times = session.time(steps, session.options.rounds or ROUNDS[device], "", warm_up=1)
    for by, step in steps.items():
        entry = entries.get(by)
        peak, method = peak_of_call(step, device)
        row = session.row(
            times[by], 0, recipe.flops() if entry else 2 * batch * macs(by), batch, kind="unets",
            name=DIT if entry else by, case=f"N={batch}", dims={"batch": batch}, dtype=recipe.dtype,
            direction="forward", backend=by if entry else "diffusers", ours=by == "auto",
            peak_bytes=peak, memory_method=method, launches=launches(step) if device == "cuda" else None,
            error=entry.error if entry else None, error_eager=error_eager if entry else None,
            note="256 x 256 pixels, as latents of 32 x 32 x 4" if entry else UNETS[by].note,
        )  # fmt: skip
        again = f"dit-fast bench unets --dtype {recipe.dtype} --batch {batch} --rounds {row.rounds} --device {device}"
        yield replace(row, repeat=again)
