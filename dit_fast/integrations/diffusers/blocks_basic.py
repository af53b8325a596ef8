# SPDX-License-Identifier: Apache-2.0
"""One stream: DiT, PixArt, Latte, Allegro, Sana, PRX.

x (N, T, D) tokens, h what a norm gave, y what an attention gave.
"""

from typing import Any

from torch import Tensor, nn

from .fused import adaln, gated_residual, gated_residual_adaln, residual_adaln, second_half
from .table import FINAL, WHOLE, Block, Family, Fused


class Basic(Block):
    """adaLN-Zero with labels (DiT), or a table of modulations added to the timestep's (PixArt, Latte)."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        timestep: Any = None,
        cross_attention_kwargs: Any = None,
        class_labels: Any = None,
        added_cond_kwargs: Any = None,
    ) -> Tensor:
        x, options = hidden_states, cross_attention_kwargs or {}
        if x.ndim != 3 or self._chunk_size is not None or "gligen" in options or "scale" in options:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        zero = self.norm_type == "ada_norm_zero"
        if zero:
            h, gate, shift_ff, scale_ff, gate_ff = self.norm1(x, timestep, class_labels, hidden_dtype=x.dtype)
        else:
            modulation = self.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
            shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation.chunk(6, dim=1)  # (N, 1, D) each
            h = adaln(self.norm1, x, shift, scale)
        h = h if self.pos_embed is None else self.pos_embed(h)
        own = encoder_hidden_states if self.only_cross_attention else None
        y = self.attn1(h, encoder_hidden_states=own, attention_mask=attention_mask, **options)
        norm = self.norm3 if zero else self.norm2
        if self.attn2 is None:
            return second_half(x, y, (gate, shift_ff, scale_ff, gate_ff), norm, self.ff)
        x = gated_residual(x, y, gate)
        h = self.norm2(x) if zero else x
        h = self.pos_embed(h) if zero and self.pos_embed is not None else h
        y = self.attn2(
            h, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **options
        )
        x, h = residual_adaln(norm, x, y, shift_ff, scale_ff)
        return gated_residual(x, self.ff(h), gate_ff)


class Allegro(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        temb: Any = None,
        attention_mask: Any = None,
        encoder_attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        x = hidden_states
        if x.ndim != 3 or x.shape[1] == 1:  # the original drops a dimension of 1
            return super().forward(
                hidden_states, encoder_hidden_states, temb, attention_mask, encoder_attention_mask, image_rotary_emb
            )
        modulation = self.scale_shift_table[None] + temb.reshape(x.shape[0], 6, -1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation.chunk(6, dim=1)  # (N, 1, D) each
        h = adaln(self.norm1, x, shift, scale)
        y = self.attn1(
            h, encoder_hidden_states=None, attention_mask=attention_mask, image_rotary_emb=image_rotary_emb
        )
        if self.attn2 is None:
            return second_half(x, y, (gate, shift_ff, scale_ff, gate_ff), self.norm2, self.ff)
        x = gated_residual(x, y, gate)
        y = self.attn2(
            x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask,
            image_rotary_emb=None,
        )  # fmt: skip
        x, h = residual_adaln(self.norm2, x, y, shift_ff, scale_ff)
        return gated_residual(x, self.ff(h), gate_ff)


def _sana(
    self: Any, x: Tensor, modulation: tuple[Tensor, ...], context: Any, mask: Any, size: tuple[int, ...], **rotary: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Up to the feed forward, whose tokens are an image or a video: x, h on its grid, and the gate to come."""
    shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation
    y = self.attn1(adaln(self.norm1, x, shift, scale).to(x.dtype), **rotary)
    if self.attn2 is None:
        x, h = gated_residual_adaln(self.norm2, x, y, gate, shift_ff, scale_ff)
    else:
        x = gated_residual(x, y, gate)
        y = self.attn2(x, encoder_hidden_states=context, attention_mask=mask)
        x, h = residual_adaln(self.norm2, x, y, shift_ff, scale_ff)
    return x, h.unflatten(1, size), gate_ff


class Sana(Block):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        timestep: Any = None,
        height: Any = None,
        width: Any = None,
    ) -> Tensor:
        x = hidden_states
        modulation = (self.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)).chunk(6, dim=1)
        x, h, gate = _sana(self, x, modulation, encoder_hidden_states, encoder_attention_mask, (height, width))
        y = self.ff(h.permute(0, 3, 1, 2))  # (N, D, height, width)
        return gated_residual(x, y.flatten(2, 3).permute(0, 2, 1), gate)


class SanaVideo(Block):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        timestep: Any = None,
        frames: Any = None,
        height: Any = None,
        width: Any = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        x, n = hidden_states, hidden_states.shape[0]
        table = self.scale_shift_table[None, None] + timestep.reshape(n, timestep.shape[1], 6, -1)
        size, context = (frames, height, width), encoder_hidden_states
        x, h, gate = _sana(
            self, x, table.unbind(dim=2), context, encoder_attention_mask, size, rotary_emb=rotary_emb
        )
        return gated_residual(x, self.ff(h).flatten(1, 3), gate)


class Prx(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Tensor,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        (shift, scale, gate), (shift_ff, scale_ff, gate_ff) = self.modulation(temb)
        x = hidden_states
        h = adaln(self.img_pre_norm, x, shift, scale)
        y = self.attention(
            hidden_states=h, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )  # fmt: skip
        x, h = gated_residual_adaln(self.post_attention_layernorm, x, y, gate, shift_ff, scale_ff)
        return gated_residual(x, self.down_proj(self.mlp_act(self.gate_proj(h)) * self.up_proj(h)), gate_ff)


def _modulated(block: nn.Module) -> str | None:
    kind = block.norm_type
    return None if kind in ("ada_norm_zero", "ada_norm_single") else f"its norm_type {kind!r} has no gates"


_BASIC = Fused(
    "attention.BasicTransformerBlock", Basic, WHOLE, ("norm1", "norm2", "norm3"), unfit=_modulated
)

FAMILIES = [
    Family(("DiTTransformer2DModel",), (_BASIC,), ("PatchEmbed", "AdaLayerNormZero"), FINAL),
    Family(("PixArtTransformer2DModel",), (_BASIC,), ("PatchEmbed",), FINAL),
    Family(("LatteTransformer3DModel",), (_BASIC,), ("PatchEmbed",), FINAL),
    Family(
        ("AllegroTransformer3DModel",),
        (Fused("transformers.transformer_allegro.AllegroTransformerBlock", Allegro, WHOLE, ("norm1", "norm2")),),
        ("PatchEmbed",),
        FINAL,
    ),
    Family(
        ("SanaTransformer2DModel",),
        (Fused("transformers.sana_transformer.SanaTransformerBlock", Sana, WHOLE, ("norm1", "norm2")),),
        ("PatchEmbed", "SanaModulatedNorm"),
    ),
    Family(
        ("SanaVideoTransformer3DModel",),
        (Fused("transformers.transformer_sana_video.SanaVideoTransformerBlock", SanaVideo, WHOLE, ("norm1", "norm2")),),
        ("SanaModulatedNorm",),
        "where each token has a modulation",
    ),
    Family(
        ("PRXTransformer2DModel",),
        (Fused("transformers.transformer_prx.PRXBlock", Prx, WHOLE, ("img_pre_norm", "post_attention_layernorm")),),
        ("FinalLayer",),
    ),
]
