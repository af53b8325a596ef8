# SPDX-License-Identifier: Apache-2.0
"""What a training run keeps in memory, reckoned before it starts. T tokens, D width, H heads, r the MLPs' ratio.

Of each parameter: the weight and its gradient (4 bytes each; 2 in pure_bf16), AdamW's two moments (8), the average (4),
the float32 master of pure_bf16 (4), and under autocast the bfloat16 copy that products take (2). FSDP divides all
but the copies by the ranks that share them, and gathers two blocks at a time.

Of each image, with `a` bytes an element where products take it and `s` bytes in the residual stream (4 and 4 in
float32, 2 and 4 under autocast, 2 and 2 in pure_bf16 and in FSDP's bf16), what the backward needs is kept:

    attention   h, packed q k v, out: 5 T D a;      its output y and the residual x after it: 2 T D s
    MLP         h, and both sides of the GELU: (1 + 2 r) T D a;      y and x: 2 T D s
    cross-attention   h, q, out: 3 T D a;      y and x: 2 T D s
    every block      a mean and a 1/std a norm, a log-sum-exp an attention's head: 4 T (2 norms + H attentions)
    around the blocks      the patches' embeddings and the last norm's output: 2 T D s; the first norm's statistics: 8 T

With checkpointing a block keeps its x and h, 2 T D s, of which the first is the embedding, and one block at a time has
the rest.

Not counted: the images themselves, terms without a factor T, kernels' scratch memory, gradients of activations while
the backward passes through a block, the allocator's slack, and what CUDA and its libraries take. Activations are those
of the package's own kernels; attention of another library may keep its operands once more.
"""

from dataclasses import dataclass
from typing import cast

from dit_fast.models import DiT

from .config import TrainConfig

MOMENTS, AVERAGE, MASTER, CAST = 8, 4, 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    moments: int
    average: int
    masters: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def estimate_memory(model: DiT, config: TrainConfig, ranks: int = 1) -> Memory:
    """See the module. `model` may be on the meta device; `ranks` is the number of processes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    pure = config.precision == "pure_bf16"
    sharded = config.parallel == "fsdp" and ranks > 1
    share = (config.shard or ranks) if sharded else 1
    own = -(-count // share)
    wide = 2 if pure else 4
    if sharded:
        block = max((sum(p.numel() for p in block.parameters()) for block in model.blocks), default=0)
        copies = 2 * block * (4 if config.precision == "float32" else CAST)
    else:
        matrices = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1)
        copies = CAST * matrices if config.precision == "bf16" else 0
    images = config.batch_size // config.accumulate // ranks
    stream = "pure_bf16" if sharded and config.precision == "bf16" else config.precision  # FSDP casts, not autocast
    return Memory(
        weights=wide * own,
        gradients=wide * own,
        moments=MOMENTS * own,
        average=AVERAGE * own,
        masters=MASTER * own if pure else 0,
        copies=copies,
        activations=images * activation_bytes(model, stream, config.checkpointing),
    )


def activation_bytes(model: DiT, precision: str, checkpointing: bool, recomputed: bool = True) -> int:
    """Kept for the backward of one image of the model's own size; `recomputed`: with the block at work.

    On a GPU; an AVX2 CPU keeps less of an MLP (`ops.mlp`).
    """
    grid, d, design = model.grid, model.pos_embed.shape[-1], model.conditioning
    ratio = cast("float", model.config["mlp_ratio"])
    s = 2 if precision == "pure_bf16" else 4
    a = 4 if precision == "float32" else 2
    outside = grid[0] * grid[1]
    conditioning = 1 if model.y_embedder is None else 2
    t = outside + conditioning if design == "in_context" else outside
    cross = design == "cross_attention"
    full = int(t * d * (a * (6 + 2 * ratio) + s * 4)) + 4 * t * (4 + model.num_heads)
    if cross:
        full += t * d * (3 * a + 2 * s) + 4 * t * (2 + model.num_heads)
    embedded, statistics = outside * d * s, 8 * t
    depth = len(model.blocks)
    if checkpointing:
        return embedded + statistics + depth * 2 * t * d * s + (full if recomputed else 0)
    return 2 * embedded + statistics + depth * full
