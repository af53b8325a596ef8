# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a forward pass, as the paper counts them ("Gflops" in its tables are 1e9 multiply-adds)."""

from typing import Any

from .dit import DiT


def count_macs(model: DiT, height: int, width: int) -> int:
    """Multiply-adds of one image through `model`: every Linear and both products of attention.

    Norms, activations and position embeddings are not counted (DiT, table 4 and appendix; an XL/2 at 32 x 32 x 4 is
    118.6e9). FLOPs as hardware vendors count them are twice as many.
    """
    d = model.pos_embed.shape[-1]
    t = (height // model.patch_size) * (width // model.patch_size)
    s = 1 if model.y_embedder is None else 2  # conditioning tokens
    tokens = t + s if model.conditioning == "in_context" else t
    total = t * model.x_embedder.proj.weight.numel() + t * model.final_layer.linear.weight.numel()
    total += sum(model.get_parameter(f"t_embedder.mlp.{i}.weight").numel() for i in (0, 2))
    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        attn = block.attn
        total += tokens * (attn.qkv.weight.numel() + attn.proj.weight.numel() + 2 * tokens * d)
        total += tokens * (block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel())
        if model.conditioning == "cross_attention":
            cross = block.cross_attn
            total += t * (cross.q.weight.numel() + cross.proj.weight.numel() + 2 * s * d)
            total += s * cross.kv.weight.numel()
    for part in (*blocks, model.final_layer):
        if hasattr(part, "adaLN_modulation"):
            total += part.adaLN_modulation[1].weight.numel()
    return total
