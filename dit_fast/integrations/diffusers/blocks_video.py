# SPDX-License-Identifier: Apache-2.0
"""Video models (Wan and its kin, CogVideoX, LTX, Mochi, Cosmos, Kandinsky, EasyAnimate) and those of RMSNorm.

x (N, T, D) tokens, c (N, S, D) the text's; h and hc what their norms gave, y and yc what the attention gave. Where a
norm is an RMSNorm, or has weights, it stays a call, and the gates are what is fused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .fused import adaln, gated_residual
from .table import AFFINE, FINAL, FP32, GATES, RMS, Block, Family, Fused


def _wan(self: Any, x: Tensor, table: Tensor, temb: Tensor, own: Callable[[Tensor], Tensor], context: Any) -> Tensor:
    """Modulation and gates in float32, tokens between them in their own dtype."""
    shift, scale, gate, shift_ff, scale_ff, gate_ff = (table + temb.float()).chunk(6, dim=1)  # (N, 1, D) each
    y = own(adaln(self.norm1, x.float(), shift, scale).type_as(x))
    x = gated_residual(x.float(), y, gate).type_as(x)
    x = x + self.attn2(self.norm2(x.float()).type_as(x), context, None, None)
    y = self.ffn(adaln(self.norm3, x.float(), shift_ff, scale_ff).type_as(x))
    return gated_residual(x.float(), y.float(), gate_ff).type_as(x)


class Wan(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any
    ) -> Tensor:
        if temb.ndim == 4:  # a modulation a token
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)

        def own(h: Tensor) -> Tensor:
            return self.attn1(h, None, None, rotary_emb)

        return _wan(self, hidden_states, self.scale_shift_table, temb, own, encoder_hidden_states)


class WanVace(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        control_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: Any,
    ) -> tuple[Tensor | None, Tensor]:
        if temb.ndim != 3:
            return super().forward(hidden_states, encoder_hidden_states, control_hidden_states, temb, rotary_emb)
        x = control_hidden_states
        if self.proj_in is not None:
            x = self.proj_in(x) + hidden_states

        def own(h: Tensor) -> Tensor:
            return self.attn1(h, None, None, rotary_emb)

        x = _wan(self, x, self.scale_shift_table.to(temb.device), temb, own, encoder_hidden_states)
        return None if self.proj_out is None else self.proj_out(x), x


class SkyReels(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any, attention_mask: Any
    ) -> Tensor:
        if temb.ndim != 3:  # a modulation a frame
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb, attention_mask)

        def own(h: Tensor) -> Tensor:
            return self.attn1(h, None, attention_mask, rotary_emb)

        return _wan(self, hidden_states, self.scale_shift_table, temb, own, encoder_hidden_states)


class CogVideoX(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = {"image_rotary_emb": image_rotary_emb, **(attention_kwargs or {})}
        return _cogvideox(self, hidden_states, encoder_hidden_states, temb, options)


class ConsisId(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None
    ) -> tuple[Tensor, Tensor]:
        return _cogvideox(self, hidden_states, encoder_hidden_states, temb, {"image_rotary_emb": image_rotary_emb})


def _cogvideox(self: Any, x: Tensor, c: Tensor, temb: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    h, hc, gate, gate_c = self.norm1(x, c, temb)
    y, yc = self.attn1(hidden_states=h, encoder_hidden_states=hc, **options)
    x, c = gated_residual(x, y, gate), gated_residual(c, yc, gate_c)
    h, hc, gate, gate_c = self.norm2(x, c, temb)
    yc, y = self.ff(torch.cat([hc, h], dim=1)).split([c.shape[1], x.shape[1]], dim=1)
    return gated_residual(x, y, gate), gated_residual(c, yc, gate_c)


class EasyAnimate(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None
    ) -> tuple[Tensor, Tensor]:
        x, c = hidden_states, encoder_hidden_states
        h, hc, gate, gate_c = self.norm1(x, c, temb)
        y, yc = self.attn1(hidden_states=h, encoder_hidden_states=hc, image_rotary_emb=image_rotary_emb)
        x, c = gated_residual(x, y, gate), gated_residual(c, yc, gate_c)
        h, hc, gate, gate_c = self.norm2(x, c, temb)
        ff_c = self.ff if self.txt_ff is None else self.txt_ff
        y, yc = self.ff(h), ff_c(hc)
        if self.norm3 is not None:
            y, yc = self.norm3(y), self.norm3(yc)
        return gated_residual(x, y, gate), gated_residual(c, yc, gate_c)


class Cosmos(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        embedded_timestep: Tensor,
        temb: Any = None,
        image_rotary_emb: Any = None,
        extra_pos_emb: Any = None,
        attention_mask: Any = None,
        controlnet_residual: Any = None,
        latents: Any = None,
        block_idx: Any = None,
    ) -> Any:
        x = hidden_states
        if self.before_proj is not None:
            x = self.before_proj(x) + latents
        x = x if extra_pos_emb is None else x + extra_pos_emb
        h, gate = self.norm1(x, embedded_timestep, temb)  # the gate (N, 1, D), or (N, T, D)
        x = gated_residual(x, self.attn1(h, image_rotary_emb=image_rotary_emb), gate)
        h, gate = self.norm2(x, embedded_timestep, temb)
        y = self.attn2(h, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        x = gated_residual(x, y, gate)
        h, gate = self.norm3(x, embedded_timestep, temb)
        x = gated_residual(x, self.ff(h), gate)
        if controlnet_residual is not None:
            assert self.after_proj is None
            return x + controlnet_residual
        return x if self.after_proj is None else (x, self.after_proj(x))


def _float_branch(x: Tensor, norm: Any, modulation: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Kandinsky's: modulation (N, 1, 3D); norm and residual in float32."""
    shift, scale, gate = modulation.float().chunk(3, dim=-1)
    y = branch(adaln(norm, x.float(), shift, scale).type_as(x))
    return gated_residual(x.float(), y.float(), gate).type_as(x)


class KandinskyEncoder(Block):
    def forward(self, x: Tensor, time_embed: Tensor, rope: Any) -> Tensor:
        own, ff = self.text_modulation(time_embed).unsqueeze(1).chunk(2, dim=-1)
        x = _float_branch(x, self.self_attention_norm, own, lambda h: self.self_attention(h, rotary_emb=rope))
        return _float_branch(x, self.feed_forward_norm, ff, self.feed_forward)


class KandinskyDecoder(Block):
    def forward(
        self, visual_embed: Tensor, text_embed: Tensor, time_embed: Tensor, rope: Any, sparse_params: Any
    ) -> Tensor:
        def attend(h: Tensor) -> Tensor:
            return self.self_attention(h, rotary_emb=rope, sparse_params=sparse_params)

        own, cross, ff = self.visual_modulation(time_embed).unsqueeze(1).chunk(3, dim=-1)
        x = _float_branch(visual_embed, self.self_attention_norm, own, attend)
        x = _float_branch(
            x, self.cross_attention_norm, cross, lambda h: self.cross_attention(h, encoder_hidden_states=text_embed)
        )
        return _float_branch(x, self.feed_forward_norm, ff, self.feed_forward)


class Ltx(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        encoder_attention_mask: Any = None,
    ) -> Tensor:
        x, table = hidden_states, self.scale_shift_table
        values = table[None, None].to(temb.device) + temb.reshape(x.shape[0], temb.shape[1], table.shape[0], -1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = values.unbind(dim=2)  # (N, 1, D) each, or (N, T, D)
        y = self.attn1(
            hidden_states=self.norm1(x) * (1 + scale) + shift, encoder_hidden_states=None,
            image_rotary_emb=image_rotary_emb,
        )  # fmt: skip
        x = gated_residual(x, y, gate)
        x = x + self.attn2(
            x, encoder_hidden_states=encoder_hidden_states, image_rotary_emb=None,
            attention_mask=encoder_attention_mask,
        )  # fmt: skip
        return gated_residual(x, self.ff(self.norm2(x) * (1 + scale_ff) + shift_ff), gate_ff)


class Mochi(Block):
    """Here the gate is in the norm that follows a branch; without it that norm is called, and the gate is fused."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        encoder_attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, c = hidden_states, encoder_hidden_states
        h, gate, scale_ff, gate_ff = self.norm1(x, temb)
        if self.context_pre_only:
            hc = self.norm1_context(c, temb)
        else:
            hc, gate_c, scale_c_ff, gate_c_ff = self.norm1_context(c, temb)
        y, yc = self.attn1(
            hidden_states=h, encoder_hidden_states=hc, image_rotary_emb=image_rotary_emb,
            attention_mask=encoder_attention_mask,
        )  # fmt: skip
        x = gated_residual(x, self.norm2(y), gate.tanh())
        y = self.ff(self.norm3(x, 1 + scale_ff.unsqueeze(1).float()))
        x = gated_residual(x, self.norm4(y), gate_ff.tanh())
        if self.context_pre_only:
            return x, c
        c = gated_residual(c, self.norm2_context(yc), gate_c.tanh())
        yc = self.ff_context(self.norm3_context(c, 1 + scale_c_ff.unsqueeze(1).float()))
        return x, gated_residual(c, self.norm4_context(yc), gate_c_ff.tanh())


class ZImage(Block):
    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor,
        freqs_cis: Tensor,
        adaln_input: Any = None,
        noise_mask: Any = None,
        adaln_noisy: Any = None,
        adaln_clean: Any = None,
    ) -> Tensor:
        if not self.modulation or noise_mask is not None:  # no gates, or a gate a token
            return super().forward(x, attn_mask, freqs_cis, adaln_input, noise_mask, adaln_noisy, adaln_clean)
        scale, gate, scale_ff, gate_ff = self.adaLN_modulation(adaln_input).unsqueeze(1).chunk(4, dim=2)
        y = self.attention(self.attention_norm1(x) * (1 + scale), attention_mask=attn_mask, freqs_cis=freqs_cis)
        x = gated_residual(x, self.attention_norm2(y), gate.tanh())
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ff))
        return gated_residual(x, self.ffn_norm2(y), gate_ff.tanh())


class Lumina2(Block):
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, image_rotary_emb: Tensor, temb: Any = None
    ) -> Tensor:
        if not self.modulation:
            return super().forward(hidden_states, attention_mask, image_rotary_emb, temb)
        x = hidden_states
        h, gate, scale_ff, gate_ff = self.norm1(x, temb)
        y = self.attn(
            hidden_states=h, encoder_hidden_states=h, attention_mask=attention_mask, image_rotary_emb=image_rotary_emb
        )
        x = gated_residual(x, self.norm2(y), gate.tanh())
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ff.unsqueeze(1)))
        return gated_residual(x, self.ffn_norm2(y), gate_ff.tanh())


def _modulated(block: Any) -> str | None:
    return None if block.modulation else "it has no modulation"


def _block(file: str, name: str, block: type, *norms: str, **options: Any) -> Fused:
    ops = ("adaln", *GATES) if norms else GATES
    return Fused(f"transformers.{file}.{name}", block, ops, norms, **options)


def _wan_block(file: str, name: str, block: type) -> Fused:
    return _block(file, name, block, "norm1", "norm3", relies=FP32)


_WAN_LEFT = f"{FINAL}; blocks where each token or frame has a modulation; in bfloat16 the gate after the attention"
_RELEASED = f"as released (norm_elementwise_affine) its {AFFINE}"
_KANDINSKY = "self_attention_norm", "feed_forward_norm"

FAMILIES = [
    Family(
        ("WanTransformer3DModel",),
        (_wan_block("transformer_wan", "WanTransformerBlock", Wan),),
        (),
        _WAN_LEFT,
    ),
    Family(
        ("WanVACETransformer3DModel",),
        (
            _wan_block("transformer_wan", "WanTransformerBlock", Wan),
            _wan_block("transformer_wan_vace", "WanVACETransformerBlock", WanVace),
        ),
        (),
        _WAN_LEFT,
    ),
    Family(
        ("WanAnimateTransformer3DModel",),
        (_wan_block("transformer_wan_animate", "WanTransformerBlock", Wan),),
        (),
        _WAN_LEFT,
    ),
    Family(
        ("ChronoEditTransformer3DModel",),
        (_wan_block("transformer_chronoedit", "WanTransformerBlock", Wan),),
        (),
        _WAN_LEFT,
    ),
    Family(
        ("SkyReelsV2Transformer3DModel",),
        (_wan_block("transformer_skyreels_v2", "SkyReelsV2TransformerBlock", SkyReels),),
        (),
        _WAN_LEFT,
    ),
    Family(
        ("CogVideoXTransformer3DModel",),
        (_block("cogvideox_transformer_3d", "CogVideoXBlock", CogVideoX),),
        ("CogVideoXLayerNormZero", "AdaLayerNorm"),
        _RELEASED,
    ),
    Family(
        ("ConsisIDTransformer3DModel",),
        (_block("consisid_transformer_3d", "ConsisIDBlock", ConsisId),),
        ("CogVideoXLayerNormZero", "AdaLayerNorm"),
        _RELEASED,
    ),
    Family(
        ("EasyAnimateTransformer3DModel",),
        (_block("transformer_easyanimate", "EasyAnimateTransformerBlock", EasyAnimate),),
        ("EasyAnimateLayerNormZero", "AdaLayerNorm"),
        _RELEASED,
    ),
    Family(
        ("CosmosTransformer3DModel",),
        (_block("transformer_cosmos", "CosmosTransformerBlock", Cosmos),),
        ("CosmosAdaLayerNormZero", "CosmosAdaLayerNorm"),
        "where each token has a modulation",
    ),
    Family(
        ("Kandinsky5Transformer3DModel",),
        (
            _block("transformer_kandinsky", "Kandinsky5TransformerEncoderBlock", KandinskyEncoder, *_KANDINSKY),
            _block(
                "transformer_kandinsky", "Kandinsky5TransformerDecoderBlock", KandinskyDecoder,
                *_KANDINSKY, "cross_attention_norm",
            ),
        ),
        (),
        "the last norm, over a grid of tokens",
    ),
    Family(
        ("LTXVideoTransformer3DModel",),
        (_block("transformer_ltx", "LTXVideoTransformerBlock", Ltx),),
        (),
        f"{RMS}; {FINAL}; where each token has a modulation",
    ),
    Family(
        ("MochiTransformer3DModel",),
        (_block("transformer_mochi", "MochiTransformerBlock", Mochi),),
        ("PatchEmbed", "AdaLayerNormContinuous"),
        RMS,
    ),
    Family(
        ("ZImageTransformer2DModel",),
        (_block("transformer_z_image", "ZImageTransformerBlock", ZImage, unfit=_modulated),),
        ("FinalLayer",),
        f"{RMS}; blocks without modulation; where each token has a modulation",
    ),
    Family(
        ("Lumina2Transformer2DModel",),
        (_block("transformer_lumina2", "Lumina2TransformerBlock", Lumina2, unfit=_modulated),),
        ("LuminaLayerNormContinuous",),
        f"{RMS}; blocks without modulation",
    ),
]  # fmt: skip
