# SPDX-License-Identifier: Apache-2.0
"""Double and single blocks: Flux, Bria, Chroma, LongCat-Image, Ovis-Image, Flux 2, HunyuanVideo, HunyuanImage.

Double blocks have two streams and one attention, single blocks attention and feed forward side by side.
x (N, T, D) image or video tokens and c (N, S, D) text tokens; h and hc what their norms gave, y and yc what the
attention gave.
"""

from typing import Any

import torch
from torch import Tensor

from .fused import adaln, clip, gated_residual, second_half
from .table import AFFINE, GATES, STREAM, Block, Family, Fused


def _double(self: Any, x: Tensor, c: Tensor, temb: Tensor, temb_c: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    h, *modulation = self.norm1(x, emb=temb)
    hc, *modulation_c = self.norm1_context(c, emb=temb_c)
    y, yc, *adapters = self.attn(hidden_states=h, encoder_hidden_states=hc, **options)
    x = second_half(x, y, modulation, self.norm2, self.ff)
    for image_prompt in adapters:
        x = x + image_prompt
    return x, second_half(c, yc, modulation_c, self.norm2_context, self.ff_context)


def _single(self: Any, x: Tensor, temb: Tensor, **options: Any) -> Tensor:
    """Of both streams' tokens in one, x (N, S + T, D)."""
    h, gate = self.norm(x, emb=temb)
    ff = self.act_mlp(self.proj_mlp(h))
    y = self.attn(hidden_states=h, **options)
    return clip(gated_residual(x, self.proj_out(torch.cat([y, ff], dim=2)), gate))


class FluxDouble(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = {"image_rotary_emb": image_rotary_emb, **(joint_attention_kwargs or {})}
        x, c = _double(self, hidden_states, encoder_hidden_states, temb, temb, **options)
        return clip(c), x


class FluxSingle(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, text = torch.cat([encoder_hidden_states, hidden_states], dim=1), encoder_hidden_states.shape[1]
        x = _single(self, x, temb, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        return x[:, :text], x[:, text:]


class BriaDouble(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = {"image_rotary_emb": image_rotary_emb, **(attention_kwargs or {})}
        x, c = _double(self, hidden_states, encoder_hidden_states, temb, temb, **options)
        return clip(c), x


class BriaSingle(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, text = torch.cat([encoder_hidden_states, hidden_states], dim=1), encoder_hidden_states.shape[1]
        x = _single(self, x, temb, image_rotary_emb=image_rotary_emb, **(attention_kwargs or {}))
        return x[:, :text], x[:, text:]


class FiboSingle(Block):
    def forward(
        self, hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None, joint_attention_kwargs: Any = None
    ) -> Tensor:
        return _single(self, hidden_states, temb, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))


class OvisSingle(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, text = torch.cat([encoder_hidden_states, hidden_states], dim=1), encoder_hidden_states.shape[1]
        h, gate = self.norm(x, emb=temb)
        ff, ff_gate = self.proj_mlp(h).split(self.mlp_hidden_dim, dim=-1)
        y = self.attn(hidden_states=h, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        x = clip(gated_residual(x, self.proj_out(torch.cat([y, self.act_mlp(ff_gate) * ff], dim=2)), gate))
        return x[:, :text], x[:, text:]


def _chroma_options(image_rotary_emb: Any, attention_mask: Any, options: Any) -> dict[str, Any]:
    if attention_mask is not None:
        attention_mask = attention_mask[:, None, None, :] * attention_mask[:, None, :, None]
    return {"image_rotary_emb": image_rotary_emb, "attention_mask": attention_mask, **(options or {})}


class ChromaDouble(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_mask: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        options = _chroma_options(image_rotary_emb, attention_mask, joint_attention_kwargs)
        x, c = _double(self, hidden_states, encoder_hidden_states, temb[:, :6], temb[:, 6:], **options)
        return clip(c), x


class ChromaSingle(Block):
    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_mask: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> Tensor:
        options = _chroma_options(image_rotary_emb, attention_mask, joint_attention_kwargs)
        return _single(self, hidden_states, temb, **options)


class Flux2Double(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb_mod_img: Tensor,
        temb_mod_txt: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        x, c = hidden_states, encoder_hidden_states
        shift, scale, *modulation = temb_mod_img.chunk(6, dim=-1)  # (N, D) or (N, 1, D) each
        shift_c, scale_c, *modulation_c = temb_mod_txt.chunk(6, dim=-1)
        y, yc = self.attn(
            hidden_states=adaln(self.norm1, x, shift, scale),
            encoder_hidden_states=adaln(self.norm1_context, c, shift_c, scale_c),
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        x = second_half(x, y, modulation, self.norm2, self.ff)
        return clip(second_half(c, yc, modulation_c, self.norm2_context, self.ff_context)), x


class Flux2Single(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        temb_mod: Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
        split_hidden_states: bool = False,
        text_seq_len: Any = None,
    ) -> Any:
        x = hidden_states
        if encoder_hidden_states is not None:
            text_seq_len = encoder_hidden_states.shape[1]
            x = torch.cat([encoder_hidden_states, x], dim=1)
        shift, scale, gate = temb_mod.chunk(3, dim=-1)
        h = adaln(self.norm, x, shift, scale)
        y = self.attn(hidden_states=h, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
        x = clip(gated_residual(x, y, gate))
        return (x[:, :text_seq_len], x[:, text_seq_len:]) if split_hidden_states else x


class HunyuanVideoDouble(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Any = None,
        freqs_cis: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        options = {"attention_mask": attention_mask, "image_rotary_emb": freqs_cis}
        return _double(self, hidden_states, encoder_hidden_states, temb, temb, **options)


class HunyuanImageDouble(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        options = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
        return _double(self, hidden_states, encoder_hidden_states, temb, temb, **options)


class HunyuanSingle(Block):
    """The text's tokens come last."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        text = encoder_hidden_states.shape[1]
        x = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        h, gate = self.norm(x, emb=temb)
        ff = self.act_mlp(self.proj_mlp(h))
        y, yc = self.attn(
            hidden_states=h[:, :-text], encoder_hidden_states=h[:, -text:], attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )  # fmt: skip
        x = gated_residual(x, self.proj_out(torch.cat([torch.cat([y, yc], dim=1), ff], dim=2)), gate)
        return x[:, :-text], x[:, -text:]


class HunyuanRefiner(Block):
    """Of the text's tokens: gates without modulation."""

    def forward(self, hidden_states: Tensor, temb: Tensor, attention_mask: Any = None) -> Tensor:
        x = hidden_states
        y = self.attn(hidden_states=self.norm1(x), encoder_hidden_states=None, attention_mask=attention_mask)
        gate, gate_ff = self.norm_out(temb)  # (N, 1, D) each
        x = gated_residual(x, y, gate)
        return gated_residual(x, self.ff(self.norm2(x)), gate_ff)


_TWO = ("norm2", "norm2_context")
_NORMS = ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "AdaLayerNormContinuous")


def _pair(file: str, name: str, double: type, single: type) -> tuple[Fused, Fused]:
    return (
        Fused(f"transformers.{file}.{name}TransformerBlock", double, STREAM, _TWO),
        Fused(f"transformers.{file}.{name}SingleTransformerBlock", single, GATES),
    )


def _refiner(file: str, name: str) -> Fused:
    return Fused(f"transformers.{file}.{name}IndividualTokenRefinerBlock", HunyuanRefiner, GATES)


_REFINED = f"the text refiner's {AFFINE}"

FAMILIES = [
    Family(("FluxTransformer2DModel",), _pair("transformer_flux", "Flux", FluxDouble, FluxSingle), _NORMS),
    Family(("BriaTransformer2DModel",), _pair("transformer_bria", "Bria", BriaDouble, BriaSingle), _NORMS),
    Family(
        ("BriaFiboTransformer2DModel",), _pair("transformer_bria_fibo", "BriaFibo", FluxDouble, FiboSingle), _NORMS
    ),
    Family(
        ("LongCatImageTransformer2DModel",),
        _pair("transformer_longcat_image", "LongCatImage", FluxDouble, FluxSingle),
        _NORMS,
    ),
    Family(
        ("OvisImageTransformer2DModel",), _pair("transformer_ovis_image", "OvisImage", FluxDouble, OvisSingle), _NORMS
    ),
    Family(
        ("ChromaTransformer2DModel",),
        _pair("transformer_chroma", "Chroma", ChromaDouble, ChromaSingle),
        ("ChromaAdaLayerNormZeroPruned", "ChromaAdaLayerNormZeroSinglePruned", "ChromaAdaLayerNormContinuousPruned"),
    ),
    Family(
        ("Flux2Transformer2DModel",),
        (
            Fused(
                "transformers.transformer_flux2.Flux2TransformerBlock", Flux2Double, ("adaln", *STREAM),
                ("norm1", "norm1_context", *_TWO), ("transformers.transformer_flux2.Flux2Modulation.split",),
            ),
            Fused(
                "transformers.transformer_flux2.Flux2SingleTransformerBlock", Flux2Single, ("adaln", *GATES),
                ("norm",), ("transformers.transformer_flux2.Flux2Modulation.split",),
            ),
        ),
        ("AdaLayerNormContinuous",),
    ),
    Family(
        ("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
        (
            *_pair("transformer_hunyuan_video", "HunyuanVideo", HunyuanVideoDouble, HunyuanSingle),
            _refiner("transformer_hunyuan_video", "HunyuanVideo"),
        ),
        _NORMS,
        f"{_REFINED}; the token-replace blocks",
    ),
    Family(
        ("HunyuanVideo15Transformer3DModel",),
        (
            Fused(
                "transformers.transformer_hunyuan_video15.HunyuanVideo15TransformerBlock",
                HunyuanVideoDouble, STREAM, _TWO,
            ),
            _refiner("transformer_hunyuan_video15", "HunyuanVideo15"),
        ),
        ("AdaLayerNormZero", "AdaLayerNormContinuous"),
        _REFINED,
    ),
    Family(
        ("HunyuanImageTransformer2DModel",),
        (
            *_pair("transformer_hunyuanimage", "HunyuanImage", HunyuanImageDouble, HunyuanSingle),
            _refiner("transformer_hunyuanimage", "HunyuanImage"),
        ),
        _NORMS,
        _REFINED,
    ),
]  # fmt: skip
