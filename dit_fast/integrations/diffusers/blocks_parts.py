# SPDX-License-Identifier: Apache-2.0
"""Modules that blocks of many models contain: norms with the Linear of their modulation, and the patch embedding.

The norms keep calling their Linear, and return what the originals return.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dit_fast import ops

from ..parts import alike, in_autocast, intact
from .fused import adaln
from .table import Block, Fused


class AdaLayerNorm(Block):
    def forward(self, x: Tensor, timestep: Any = None, temb: Any = None) -> Tensor:
        if self.chunk_dim != 1:  # one modulation for the whole batch
            return super().forward(x, timestep, temb)
        temb = temb if self.emb is None else self.emb(timestep)
        shift, scale = self.linear(self.silu(temb)).chunk(2, dim=1)
        return adaln(self.norm, x, shift, scale)


class AdaLayerNormZero(Block):
    def forward(
        self, x: Tensor, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None
    ) -> tuple[Tensor, ...]:
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        shift, scale, *others = self.linear(self.silu(emb)).chunk(6, dim=1)
        return adaln(self.norm, x, shift, scale), *others


class AdaLayerNormZeroSingle(Block):
    def forward(self, x: Tensor, emb: Any = None) -> tuple[Tensor, Tensor]:
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return adaln(self.norm, x, shift, scale), gate


class SD35AdaLayerNormZero(Block):
    def forward(self, hidden_states: Tensor, emb: Any = None) -> tuple[Tensor, ...]:
        shift, scale, *others, shift2, scale2, gate2 = self.linear(self.silu(emb)).chunk(9, dim=1)
        x = hidden_states
        return adaln(self.norm, x, shift, scale), *others, adaln(self.norm, x, shift2, scale2), gate2


class AdaLayerNormContinuous(Block):
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        return adaln(self.norm, x, shift, scale)


class LuminaLayerNormContinuous(Block):
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        scale = self.linear_1(self.silu(conditioning_embedding).to(x.dtype))
        x = adaln(self.norm, x, torch.zeros_like(scale), scale)
        return x if self.linear_2 is None else self.linear_2(x)


class CogvideoxLayerNormZero(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, ...]:
        shift, scale, gate, shift_c, scale_c, gate_c = self.linear(self.silu(temb)).chunk(6, dim=1)
        h = adaln(self.norm, hidden_states, shift, scale)
        c = adaln(self.norm, encoder_hidden_states, shift_c, scale_c)
        return h, c, gate[:, None, :], gate_c[:, None, :]


class EasyanimateLayerNormZero(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, ...]:
        shift, scale, gate, shift_c, scale_c, gate_c = self.linear(self.silu(temb)).chunk(6, dim=1)
        h = adaln(self.norm, hidden_states, shift, scale)
        return h, adaln(self.norm, encoder_hidden_states, shift_c, scale_c), gate, gate_c


class Cogview3LayerNormZero(Block):
    def forward(self, x: Tensor, context: Tensor, emb: Any = None) -> tuple[Tensor, ...]:
        shift, scale, *others, shift_c, scale_c, gate_c, shift_c_ff, scale_c_ff, gate_c_ff = self.linear(
            self.silu(emb)
        ).chunk(12, dim=1)
        h, c = adaln(self.norm_x, x, shift, scale), adaln(self.norm_c, context, shift_c, scale_c)
        return h, *others, c, gate_c, shift_c_ff, scale_c_ff, gate_c_ff


class Cogview4LayerNormZero(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, ...]:
        shift, shift_c, scale, scale_c, *others = self.linear(temb).chunk(12, dim=1)
        x, c = hidden_states, encoder_hidden_states
        h = adaln(self.norm, x, shift, scale, cast=x.dtype)
        hc = adaln(self.norm_context, c, shift_c, scale_c, cast=x.dtype)
        return h, *others[0::2], hc, *others[1::2]  # image's and text's gate, shift, scale, gate alternate


class Cogview4LayerNormContinuous(Block):
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        scale, shift = self.linear(conditioning_embedding.to(x.dtype)).chunk(2, dim=1)
        return adaln(self.norm, x, shift, scale)


class ChromaLayerNormZero(Block):
    def forward(
        self, x: Tensor, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None
    ) -> tuple[Tensor, ...]:
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        shift, scale, *others = emb.flatten(1, 2).chunk(6, dim=1)
        return adaln(self.norm, x, shift, scale), *others


class ChromaLayerNormZeroSingle(Block):
    def forward(self, x: Tensor, emb: Any = None) -> tuple[Tensor, Tensor]:
        shift, scale, gate = emb.flatten(1, 2).chunk(3, dim=1)
        return adaln(self.norm, x, shift, scale), gate


class ChromaLayerNormContinuous(Block):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = emb.flatten(1, 2).to(x.dtype).chunk(2, dim=1)
        return adaln(self.norm, x, shift, scale)


class SanaModulatedNorm(Block):
    def forward(self, hidden_states: Tensor, temb: Tensor, scale_shift_table: Tensor) -> Tensor:
        shift, scale = (scale_shift_table[None] + temb[:, None].to(scale_shift_table.device)).chunk(2, dim=1)
        return adaln(self.norm, hidden_states, shift, scale)


class SanaVideoModulatedNorm(Block):
    def forward(self, hidden_states: Tensor, temb: Tensor, scale_shift_table: Tensor) -> Tensor:
        shift, scale = (scale_shift_table[None, None] + temb[:, :, None].to(scale_shift_table.device)).unbind(dim=2)
        return adaln(self.norm, hidden_states, shift, scale)


def _cosmos_embedding(self: Any, embedded_timestep: Tensor, temb: Tensor | None, chunks: int) -> tuple[Tensor, ...]:
    e = self.linear_2(self.linear_1(self.activation(embedded_timestep)))
    e = e if temb is None else e + temb
    return (e.unsqueeze(1) if e.ndim == 2 else e).chunk(chunks, dim=-1)


class CosmosLayerNorm(Block):
    def forward(
        self, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor | None = None
    ) -> Tensor:
        temb = None if temb is None else temb[..., : 2 * self.embedding_dim]
        shift, scale = _cosmos_embedding(self, embedded_timestep, temb, 2)
        return adaln(self.norm, hidden_states, shift, scale)


class CosmosLayerNormZero(Block):
    def forward(
        self, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate = _cosmos_embedding(self, embedded_timestep, temb, 3)
        return adaln(self.norm, hidden_states, shift, scale), gate


class HidreamOut(Block):
    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(temb).chunk(2, dim=1)
        return self.linear(adaln(self.norm_final, hidden_states, shift, scale))


class PrxFinalLayer(Block):
    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=1)
        return self.linear(adaln(self.norm_final, x, shift, scale))


class ZImageFinalLayer(Block):
    def forward(
        self, x: Tensor, c: Any = None, noise_mask: Any = None, c_noisy: Any = None, c_clean: Any = None
    ) -> Tensor:
        if noise_mask is not None or c is None:  # a modulation a token; or the original's own complaint
            return super().forward(x, c, noise_mask, c_noisy, c_clean)
        scale = self.adaLN_modulation(c)
        return self.linear(adaln(self.norm_final, x, torch.zeros_like(scale), scale))


class PatchEmbed(Block):
    def forward(self, latent: Tensor) -> Tensor:
        pos = self._positions(latent)
        if pos is None:
            return super().forward(latent)
        return ops.patch_embed(latent, self.proj.weight, self.proj.bias, pos)

    def _positions(self, x: Tensor) -> Tensor | None:
        """(T, D) of x (N, C, H, W); None where the op does not fit."""
        if not self.flatten or self.layer_norm or not intact(self.proj, nn.Conv2d) or in_autocast(x):
            return None
        height, width = x.shape[-2:]
        size = height // self.patch_size, width // self.patch_size
        if self.pos_embed is None:
            pos = x.new_zeros(1, 1).expand(size[0] * size[1], self.proj.out_channels)
        elif self.pos_embed_max_size:
            pos = self.cropped_pos_embed(height, width)[0]
        else:
            pos = self.pos_embed[0]
        whole = height % self.patch_size == 0 == width % self.patch_size
        own = self.pos_embed is None or self.pos_embed_max_size or size == (self.height, self.width)
        return pos if whole and own and alike(x, self.proj.weight, pos) else None


def _norm(name: str, forward: Any, *norms: str, **options: Any) -> Fused:
    return Fused(name, forward, ("adaln",), norms or ("norm",), **options)


def _one_batch(norm: nn.Module) -> str | None:
    return None if norm.chunk_dim == 1 else "it has one modulation for the whole batch"


BLOCKS = [
    Fused("embeddings.PatchEmbed", PatchEmbed, ("patch_embed",)),
    _norm("normalization.AdaLayerNorm", AdaLayerNorm, unfit=_one_batch),
    _norm("normalization.AdaLayerNormZero", AdaLayerNormZero),
    _norm("normalization.AdaLayerNormZeroSingle", AdaLayerNormZeroSingle),
    _norm("normalization.SD35AdaLayerNormZeroX", SD35AdaLayerNormZero),
    _norm("normalization.AdaLayerNormContinuous", AdaLayerNormContinuous),
    _norm("normalization.LuminaLayerNormContinuous", LuminaLayerNormContinuous),
    _norm("normalization.CogVideoXLayerNormZero", CogvideoxLayerNormZero),
    _norm("normalization.CogView3PlusAdaLayerNormZeroTextImage", Cogview3LayerNormZero, "norm_x", "norm_c"),
    _norm("transformers.transformer_cogview4.CogView4AdaLayerNormZero", Cogview4LayerNormZero, "norm", "norm_context"),
    _norm("transformers.transformer_cogview4.CogView4AdaLayerNormContinuous", Cogview4LayerNormContinuous),
    _norm("transformers.transformer_glm_image.GlmImageAdaLayerNormZero", Cogview4LayerNormZero, "norm", "norm_context"),
    _norm("transformers.transformer_glm_image.GlmImageAdaLayerNormContinuous", Cogview4LayerNormContinuous),
    _norm("transformers.transformer_chroma.ChromaAdaLayerNormZeroPruned", ChromaLayerNormZero),
    _norm("transformers.transformer_chroma.ChromaAdaLayerNormZeroSinglePruned", ChromaLayerNormZeroSingle),
    _norm("transformers.transformer_chroma.ChromaAdaLayerNormContinuousPruned", ChromaLayerNormContinuous),
    _norm("transformers.transformer_easyanimate.EasyAnimateLayerNormZero", EasyanimateLayerNormZero),
    _norm("transformers.sana_transformer.SanaModulatedNorm", SanaModulatedNorm),
    _norm("transformers.transformer_sana_video.SanaModulatedNorm", SanaVideoModulatedNorm),
    _norm("transformers.transformer_cosmos.CosmosAdaLayerNorm", CosmosLayerNorm),
    _norm("transformers.transformer_cosmos.CosmosAdaLayerNormZero", CosmosLayerNormZero),
    _norm("transformers.transformer_hidream_image.HiDreamImageOutEmbed", HidreamOut, "norm_final"),
    _norm("transformers.transformer_prx.FinalLayer", PrxFinalLayer, "norm_final"),
    _norm("transformers.transformer_z_image.FinalLayer", ZImageFinalLayer, "norm_final"),
]
