# SPDX-License-Identifier: Apache-2.0
"""Two streams with one attention: SD3, AuraFlow, Qwen-Image, CogView, GLM-Image, HiDream, JoyImage.

x (N, T, D) image tokens and c (N, S, D) text tokens; h and hc what their norms gave, y and yc what the attention gave.
"""

from typing import Any

import torch
from torch import Tensor

from .fused import adaln, clip, gated_residual, gated_residual_adaln, second_half
from .table import FP32, STREAM, WHOLE, Block, Family, Fused


class Joint(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, joint_attention_kwargs: Any = None
    ) -> tuple[Tensor | None, Tensor]:
        if self._chunk_size is not None:
            return super().forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
        x, c, options = hidden_states, encoder_hidden_states, joint_attention_kwargs or {}
        h, gate, shift_ff, scale_ff, gate_ff, *dual = self.norm1(x, emb=temb)
        hc, *modulation_c = (self.norm1_context(c, temb),) if self.context_pre_only else self.norm1_context(c, emb=temb)
        y, yc = self.attn(hidden_states=h, encoder_hidden_states=hc, **options)
        if self.use_dual_attention:
            x = gated_residual(x, y, gate)
            h, gate = dual
            y = self.attn2(hidden_states=h, **options)
        x = second_half(x, y, (gate, shift_ff, scale_ff, gate_ff), self.norm2, self.ff)
        if self.context_pre_only:
            return None, x
        return second_half(c, yc, modulation_c, self.norm2_context, self.ff_context), x


def _around(x: Tensor, y: Tensor, modulation: Any, norm: Any, ff: Any) -> Tensor:
    """AuraFlow adds the feed forward to the block's input: the attention enters through the norm alone."""
    gate, shift_ff, scale_ff, gate_ff = modulation
    _, h = gated_residual_adaln(norm, x, y, gate, shift_ff, scale_ff)
    return gated_residual(x, ff(h), gate_ff)


class AuraFlowSingle(Block):
    def forward(self, hidden_states: Tensor, temb: Tensor, attention_kwargs: Any = None) -> Tensor:
        h, *modulation = self.norm1(hidden_states, emb=temb)
        y = self.attn(hidden_states=h, **(attention_kwargs or {}))
        return _around(hidden_states, y, modulation, self.norm2, self.ff)


class AuraFlowJoint(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, attention_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        x, c = hidden_states, encoder_hidden_states
        h, *modulation = self.norm1(x, emb=temb)
        hc, *modulation_c = self.norm1_context(c, emb=temb)
        y, yc = self.attn(hidden_states=h, encoder_hidden_states=hc, **(attention_kwargs or {}))
        x = _around(x, y, modulation, self.norm2, self.ff)
        return _around(c, yc, modulation_c, self.norm2_context, self.ff_context), x


class QwenImage(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
        modulate_index: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if modulate_index is not None or self.zero_cond_t:  # a modulation a token
            return super().forward(
                hidden_states, encoder_hidden_states, encoder_hidden_states_mask, temb, image_rotary_emb,
                joint_attention_kwargs, modulate_index,
            )  # fmt: skip
        x, c = hidden_states, encoder_hidden_states
        shift, scale, *modulation = self.img_mod(temb).chunk(6, dim=-1)  # (N, D) each
        shift_c, scale_c, *modulation_c = self.txt_mod(temb).chunk(6, dim=-1)
        y, yc = self.attn(
            hidden_states=adaln(self.img_norm1, x, shift, scale),
            encoder_hidden_states=adaln(self.txt_norm1, c, shift_c, scale_c),
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        x = second_half(x, y, modulation, self.img_norm2, self.img_mlp)
        c = second_half(c, yc, modulation_c, self.txt_norm2, self.txt_mlp)
        return clip(c), clip(x)


class JoyImage(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None
    ) -> tuple[Tensor, Tensor]:
        x, c = hidden_states, encoder_hidden_states
        shift, scale, *modulation = self.img_mod(temb)
        shift_c, scale_c, *modulation_c = self.txt_mod(temb)
        y, yc = self.attn(
            hidden_states=adaln(self.img_norm1, x, shift, scale),
            encoder_hidden_states=adaln(self.txt_norm1, c, shift_c, scale_c),
            image_rotary_emb=image_rotary_emb,
        )
        x = second_half(x, y, modulation, self.img_norm2, self.img_mlp)
        return x, second_half(c, yc, modulation_c, self.txt_norm2, self.txt_mlp)


class CogView3(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, emb: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, c, text = hidden_states, encoder_hidden_states, encoder_hidden_states.shape[1]
        h, *modulation, hc, gate_c, shift_c, scale_c, gate_c_ff = self.norm1(x, c, emb)
        gate, shift, scale, gate_ff = modulation
        y, yc = self.attn1(hidden_states=h, encoder_hidden_states=hc)
        x, h = gated_residual_adaln(self.norm2, x, y, gate, shift, scale)
        c, hc = gated_residual_adaln(self.norm2_context, c, yc, gate_c, shift_c, scale_c)
        yc, y = self.ff(torch.cat([hc, h], dim=1)).split([text, x.shape[1]], dim=1)
        return clip(gated_residual(x, y, gate_ff)), clip(gated_residual(c, yc, gate_c_ff))


class CogView4(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Any = None,
        image_rotary_emb: Any = None,
        attention_mask: Any = None,
        attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = {"attention_mask": attention_mask, **(attention_kwargs or {})}
        return _cogview4(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb, options)


class GlmImage(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Any = None,
        image_rotary_emb: Any = None,
        attention_mask: Any = None,
        attention_kwargs: Any = None,
        kv_cache: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = {"attention_mask": attention_mask, "kv_cache": kv_cache, **(attention_kwargs or {})}
        return _cogview4(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb, options)


def _cogview4(self: Any, x: Tensor, c: Tensor, temb: Any, rotary: Any, options: Any) -> tuple[Tensor, Tensor]:
    h, *modulation, hc, gate_c, shift_c, scale_c, gate_c_ff = self.norm1(x, c, temb)
    y, yc = self.attn1(hidden_states=h, encoder_hidden_states=hc, image_rotary_emb=rotary, **options)
    x = second_half(x, y, modulation, self.norm2, self.ff)
    return x, second_half(c, yc, (gate_c, shift_c, scale_c, gate_c_ff), self.norm2_context, self.ff)


class HiDream(Block):
    def forward(
        self,
        hidden_states: Tensor,
        hidden_states_masks: Any = None,
        encoder_hidden_states: Any = None,
        temb: Any = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, c, kind = hidden_states, encoder_hidden_states, hidden_states.dtype
        modulation = self.adaLN_modulation(temb).chunk(12, dim=-1)  # (N, D) each
        (shift, scale, *own), (shift_c, scale_c, *own_c) = modulation[:6], modulation[6:]
        h = adaln(self.norm1_i, x, shift, scale, cast=kind)
        hc = adaln(self.norm1_t, c, shift_c, scale_c, cast=kind)
        y, yc = self.attn1(h, hidden_states_masks, hc, image_rotary_emb=image_rotary_emb)
        x = second_half(x, y, own, self.norm3_i, self.ff_i, cast=kind)
        return x, second_half(c, yc, own_c, self.norm3_t, self.ff_t, cast=kind)


class HiDreamSingle(Block):
    def forward(
        self,
        hidden_states: Tensor,
        hidden_states_masks: Any = None,
        encoder_hidden_states: Any = None,
        temb: Any = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        x, kind = hidden_states, hidden_states.dtype
        shift, scale, *modulation = self.adaLN_modulation(temb).chunk(6, dim=-1)  # (N, D) each
        h = adaln(self.norm1_i, x, shift, scale, cast=kind)
        y = self.attn1(h, hidden_states_masks, image_rotary_emb=image_rotary_emb)
        return second_half(x, y, modulation, self.norm3_i, lambda h: self.ff_i(h.to(kind)), cast=kind)


def _block(file: str, name: str, block: type, ops: tuple[str, ...], *norms: str, relies: tuple[str, ...] = ()) -> Fused:
    return Fused(f"transformers.{file}.{name}", block, ops, norms, relies)


_AURA = "auraflow_transformer_2d"
_TWO = ("norm2", "norm2_context")
_FOUR = ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2")

FAMILIES = [
    Family(
        ("SD3Transformer2DModel",),
        (Fused("attention.JointTransformerBlock", Joint, STREAM, _TWO),),
        ("PatchEmbed", "AdaLayerNormZero", "SD35AdaLayerNormZeroX", "AdaLayerNormContinuous"),
    ),
    Family(
        ("AuraFlowTransformer2DModel",),
        (
            _block(_AURA, "AuraFlowJointTransformerBlock", AuraFlowJoint, STREAM, *_TWO, relies=FP32),
            _block(_AURA, "AuraFlowSingleTransformerBlock", AuraFlowSingle, STREAM, "norm2", relies=FP32),
        ),
        ("AdaLayerNormZero",),
        "the last modulation, which has no norm",
    ),
    Family(
        ("QwenImageTransformer2DModel",),
        (
            _block(
                "transformer_qwenimage", "QwenImageTransformerBlock", QwenImage, WHOLE, *_FOUR, relies=("_modulate",)
            ),
        ),
        ("AdaLayerNormContinuous",),
        "zero_cond_t, where each token has a modulation",
    ),
    Family(
        ("JoyImageEditTransformer3DModel",),
        (_block("transformer_joyimage", "JoyImageTransformerBlock", JoyImage, WHOLE, *_FOUR, relies=FP32),),
    ),
    Family(
        ("CogView3PlusTransformer2DModel",),
        (_block("transformer_cogview3plus", "CogView3PlusTransformerBlock", CogView3, STREAM, *_TWO),),
        ("CogView3PlusAdaLayerNormZeroTextImage", "AdaLayerNormContinuous"),
    ),
    Family(
        ("CogView4Transformer2DModel",),
        (_block("transformer_cogview4", "CogView4TransformerBlock", CogView4, STREAM, *_TWO),),
        ("CogView4AdaLayerNormZero", "CogView4AdaLayerNormContinuous"),
    ),
    Family(
        ("GlmImageTransformer2DModel",),
        (_block("transformer_glm_image", "GlmImageTransformerBlock", GlmImage, STREAM, *_TWO),),
        ("GlmImageAdaLayerNormZero", "GlmImageAdaLayerNormContinuous"),
    ),
    Family(
        ("HiDreamImageTransformer2DModel",),
        (
            _block(
                "transformer_hidream_image", "HiDreamImageTransformerBlock", HiDream, WHOLE,
                "norm1_i", "norm1_t", "norm3_i", "norm3_t",
            ),
            _block(
                "transformer_hidream_image", "HiDreamImageSingleTransformerBlock", HiDreamSingle, WHOLE,
                "norm1_i", "norm3_i",
            ),
        ),
        ("HiDreamImageOutEmbed",),
    ),
]  # fmt: skip
