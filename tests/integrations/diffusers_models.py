# SPDX-License-Identifier: Apache-2.0
"""A tiny random model of each diffusers architecture that is patched, and a batch of two for it.

A case is a configuration and a function that makes the model's arguments; `r(*shape)` gives random numbers. The two
samples have different timesteps, which bfloat16 holds exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

Make = Callable[..., Tensor]

STEPS = torch.tensor([3.0, 872.0])
PART = torch.tensor([0.125, 0.75])


class Case(NamedTuple):
    model: str
    config: dict[str, Any]
    inputs: Callable[[Make], dict[str, Any]]
    shrink: Callable[[nn.Module], None] = lambda model: None  # parts whose size no configuration sets

    def build(self, seed: int = 0) -> nn.Module:
        """In training mode, without dropout; nothing that a block scales with is zero."""
        torch.manual_seed(seed)
        model = getattr(diffusers, self.model)(**self.config)
        self.shrink(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.unique().numel() == 1:  # zeros, or a norm's ones
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.train()

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> dict[str, Any]:
        """Numbers rounded to `dtype`; timesteps stay as they are."""
        g = torch.Generator().manual_seed(seed)

        def cast(value: Any) -> Any:
            if isinstance(value, list):
                return [cast(v) for v in value]
            kept = not isinstance(value, Tensor) or value.dtype != torch.float32 or value is STEPS or value is PART
            return value if kept else value.to(dtype)

        return {k: cast(v) for k, v in self.inputs(lambda *shape: torch.randn(*shape, generator=g)).items()}


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def flux_inputs(r: Make, **more: Any) -> dict[str, Any]:
    ids = torch.stack(torch.meshgrid(torch.arange(1.0), torch.arange(3.0), torch.arange(4.0), indexing="ij"), -1)
    return {
        "hidden_states": r(2, 12, 8), "encoder_hidden_states": r(2, 5, 24), "timestep": PART,
        "img_ids": ids.reshape(12, 3), "txt_ids": torch.zeros(5, 3), **more,
    }  # fmt: skip


FLUX = {
    **HEADS, "patch_size": 1, "in_channels": 8, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
VIDEO = {"sample_width": 8, "sample_height": 6, "sample_frames": 5}
COGVIDEOX = {
    **HEADS, **VIDEO, "in_channels": 4, "out_channels": 4, "time_embed_dim": 24, "text_embed_dim": 20, "num_layers": 2,
    "max_text_seq_length": 5,
}  # fmt: skip
WAN = {
    **HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 20, "freq_dim": 32, "ffn_dim": 48, "num_layers": 2,
    "rope_max_seq_len": 32,
}  # fmt: skip


def cogvideox_inputs(r: Make) -> dict[str, Any]:
    return {"hidden_states": r(2, 2, 4, 6, 8), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS}


def wan_inputs(r: Make) -> dict[str, Any]:
    return {"hidden_states": r(2, 4, 2, 4, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS}


def pixart_inputs(r: Make) -> dict[str, Any]:
    return {
        "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
    }  # fmt: skip


def mask(*lengths: int, size: int = 5) -> Tensor:
    return torch.stack([torch.arange(size) < n for n in lengths])


def _shrink_text(model: nn.Module) -> None:
    model.context_embedder_2 = type(model.context_embedder_2)(20, 16, 32)


CASES = {
    "dit": Case(
        "DiTTransformer2DModel",
        {**HEADS, "sample_size": 8, "num_layers": 2, "num_embeds_ada_norm": 5, "out_channels": 8},
        lambda r: {"hidden_states": r(2, 4, 8, 8), "timestep": STEPS, "class_labels": torch.tensor([1, 4])},
    ),
    "pixart": Case(
        "PixArtTransformer2DModel",
        {
            **HEADS, "cross_attention_dim": 32, "caption_channels": 20, "sample_size": 8, "num_layers": 2,
            "use_additional_conditions": False,
        },
        pixart_inputs,
    ),
    "latte": Case(
        "LatteTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 32, "sample_size": 8,
            "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": 20,
            "video_length": 3,
        },
        lambda r: {"hidden_states": r(2, 4, 3, 8, 8), "timestep": STEPS, "encoder_hidden_states": r(2, 5, 20)},
    ),
    "allegro": Case(
        "AllegroTransformer3DModel",
        {
            **HEADS, "attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": 20, "num_layers": 2,
            "sample_height": 8, "sample_width": 8, "sample_frames": 3,
        },
        lambda r: {
            "hidden_states": r(2, 4, 2, 8, 8), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
            "attention_mask": torch.ones(2, 2, 8, 8), "encoder_attention_mask": mask(4, 2).float(),
            "image_rotary_emb": None,
        },
    ),
    "sana": Case(
        "SanaTransformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 20, "sample_size": 6,
        },
        lambda r: {"hidden_states": r(2, 4, 6, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
    ),
    "sana_video": Case(
        "SanaVideoTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 20, "sample_size": 6,
            "rope_max_seq_len": 32,
        },
        lambda r: {"hidden_states": r(2, 4, 2, 6, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
    ),
    "prx": Case(
        "PRXTransformer2DModel",
        {
            "in_channels": 4, "patch_size": 2, "context_in_dim": 20, "hidden_size": 32, "num_heads": 2, "depth": 2,
            "axes_dim": [8, 8],
        },
        lambda r: {"hidden_states": r(2, 4, 6, 8), "encoder_hidden_states": r(2, 5, 20), "timestep": PART},
    ),
    "sd3": Case(
        "SD3Transformer2DModel",
        {
            **HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 24,
            "caption_projection_dim": 32, "pooled_projection_dim": 20, "pos_embed_max_size": 8,
            "dual_attention_layers": (0,), "qk_norm": "rms_norm",
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 24), "pooled_projections": r(2, 20),
            "timestep": STEPS,
        },
    ),
    "auraflow": Case(
        "AuraFlowTransformer2DModel",
        {
            **HEADS, "sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "joint_attention_dim": 24,
            "caption_projection_dim": 32, "pos_embed_max_size": 64,
        },
        lambda r: {"hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 24), "timestep": PART},
    ),
    "qwenimage": Case(
        "QwenImageTransformer2DModel",
        {
            **HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda r: {
            "hidden_states": r(2, 12, 16), "encoder_hidden_states": r(2, 5, 24), "timestep": PART,
            "encoder_hidden_states_mask": mask(5, 3), "img_shapes": [(1, 3, 4)] * 2,
        },
    ),
    "joyimage": Case(
        "JoyImageEditTransformer3DModel",
        {
            "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 20, "num_layers": 2,
            "rope_dim_list": [4, 6, 6],
        },
        lambda r: {"hidden_states": r(2, 4, 1, 4, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
    ),
    "cogview3": Case(
        "CogView3PlusTransformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 24, "time_embed_dim": 20,
            "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8,
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 24), "timestep": STEPS,
            "original_size": torch.full((2, 2), 64.0), "target_size": torch.full((2, 2), 32.0),
            "crop_coords": torch.zeros(2, 2),
        },
    ),
    "cogview4": Case(
        "CogView4Transformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 24, "time_embed_dim": 20,
            "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8),
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 24), "timestep": STEPS,
            "original_size": torch.full((2, 2), 64.0), "target_size": torch.full((2, 2), 32.0),
            "crop_coords": torch.zeros(2, 2),
        },
    ),
    "glm_image": Case(
        "GlmImageTransformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 24, "time_embed_dim": 20,
            "condition_dim": 8, "prior_vq_quantizer_codebook_size": 16,
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 24), "timestep": STEPS,
            "prior_token_id": torch.arange(32).reshape(2, 16) % 16, "prior_token_drop": torch.zeros(2, 16).bool(),
            "target_size": torch.full((2, 2), 32.0), "crop_coords": torch.zeros(2, 2),
        },
    ),
    "hidream": Case(
        "HiDreamImageTransformer2DModel",
        {
            **HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
            "caption_channels": [24, 20], "text_emb_dim": 12, "num_routed_experts": 2, "num_activated_experts": 2,
            "axes_dims_rope": (8, 4, 4), "max_resolution": (8, 8), "llama_layers": (0, 1),
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8), "timesteps": STEPS, "encoder_hidden_states_t5": r(2, 5, 24),
            "encoder_hidden_states_llama3": r(2, 2, 5, 20), "pooled_embeds": r(2, 12),
        },
    ),
    "flux": Case(
        "FluxTransformer2DModel",
        {**FLUX, "pooled_projection_dim": 20},
        lambda r: flux_inputs(r, pooled_projections=r(2, 20)),
    ),
    "bria": Case("BriaTransformer2DModel", FLUX, flux_inputs),
    "bria_fibo": Case(
        "BriaFiboTransformer2DModel",
        {**FLUX, "text_encoder_dim": 12},
        lambda r: flux_inputs(r, text_encoder_layers=[r(2, 5, 12) for _ in range(4)]),
    ),
    "longcat_image": Case("LongCatImageTransformer2DModel", FLUX, flux_inputs),
    "ovis_image": Case("OvisImageTransformer2DModel", {**FLUX, "out_channels": 8}, flux_inputs),
    "chroma": Case(
        "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda r: flux_inputs(r, attention_mask=mask(17, 14, size=17)),
    ),
    "flux2": Case(
        "Flux2Transformer2DModel",
        {
            **FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16,
        },
        lambda r: flux_inputs(
            r, guidance=torch.ones(2), img_ids=torch.arange(48.0).reshape(12, 4) % 5, txt_ids=torch.zeros(5, 4)
        ),
    ),
    "hunyuan_video": Case(
        "HunyuanVideoTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
            "num_refiner_layers": 1, "text_embed_dim": 24, "pooled_projection_dim": 20, "rope_axes_dim": (4, 6, 6),
        },
        lambda r: {
            "hidden_states": r(2, 4, 2, 4, 6), "timestep": STEPS, "encoder_hidden_states": r(2, 5, 24),
            "encoder_attention_mask": mask(5, 3), "pooled_projections": r(2, 20), "guidance": torch.full((2,), 500.0),
        },
    ),
    "framepack": Case(
        "HunyuanVideoFramepackTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
            "num_refiner_layers": 1, "text_embed_dim": 24, "pooled_projection_dim": 20, "rope_axes_dim": (4, 6, 6),
            "has_image_proj": True, "image_proj_dim": 12, "has_clean_x_embedder": True,
        },
        lambda r: {
            "hidden_states": r(2, 4, 2, 8, 8), "timestep": STEPS, "encoder_hidden_states": r(2, 5, 24),
            "encoder_attention_mask": mask(5, 3), "pooled_projections": r(2, 20), "guidance": torch.full((2,), 500.0),
            "image_embeds": r(2, 3, 12), "indices_latents": torch.arange(2),
            "latents_clean": r(2, 4, 1, 8, 8), "indices_latents_clean": torch.zeros(1),
            "latents_history_2x": r(2, 4, 2, 8, 8), "indices_latents_history_2x": torch.arange(2),
            "latents_history_4x": r(2, 4, 4, 8, 8), "indices_latents_history_4x": torch.arange(4),
        },
    ),
    "hunyuan_video15": Case(
        "HunyuanVideo15Transformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_refiner_layers": 1,
            "text_embed_dim": 24, "text_embed_2_dim": 20, "image_embed_dim": 12, "rope_axes_dim": (4, 6, 6),
            "task_type": "t2v",
        },
        lambda r: {
            "hidden_states": r(2, 4, 2, 4, 6), "timestep": STEPS * 1, "encoder_hidden_states": r(2, 5, 24),
            "encoder_attention_mask": mask(5, 3), "encoder_hidden_states_2": r(2, 4, 20),
            "encoder_attention_mask_2": mask(4, 2, size=4), "image_embeds": torch.zeros(2, 3, 12),
        },
        _shrink_text,
    ),
    "hunyuan_image": Case(
        "HunyuanImageTransformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
            "num_refiner_layers": 1, "text_embed_dim": 24, "rope_axes_dim": (8, 8),
        },
        lambda r: {
            "hidden_states": r(2, 4, 4, 6), "timestep": STEPS * 1, "encoder_hidden_states": r(2, 5, 24),
            "encoder_attention_mask": mask(5, 3),
        },
    ),
    "wan": Case("WanTransformer3DModel", WAN, wan_inputs),
    "wan_vace": Case(
        "WanVACETransformer3DModel",
        {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6},
        lambda r: {
            **wan_inputs(r), "control_hidden_states": r(2, 6, 2, 4, 6), "control_hidden_states_scale": torch.ones(2),
        },
    ),
    "wan_animate": Case(
        "WanAnimateTransformer3DModel",
        {
            **WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 12, "motion_encoder_channel_sizes": {
                "4": 8, "8": 8, "16": 8,
            }, "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2,
        },
        lambda r: {
            "hidden_states": r(2, 12, 2, 4, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
            "encoder_hidden_states_image": r(2, 5, 12), "pose_hidden_states": r(2, 4, 1, 4, 6),
            "face_pixel_values": r(2, 3, 5, 16, 16),
        },
    ),
    "chronoedit": Case("ChronoEditTransformer3DModel", WAN, wan_inputs),
    "skyreels": Case("SkyReelsV2Transformer3DModel", WAN, wan_inputs),
    "cogvideox": Case("CogVideoXTransformer3DModel", COGVIDEOX, cogvideox_inputs),
    "cogvideox_plain": Case(
        "CogVideoXTransformer3DModel", {**COGVIDEOX, "norm_elementwise_affine": False}, cogvideox_inputs
    ),
    "consisid": Case(
        "ConsisIDTransformer3DModel", {**COGVIDEOX, "norm_elementwise_affine": False}, cogvideox_inputs
    ),
    "easyanimate": Case(
        "EasyAnimateTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2, "mmdit_layers": 1,
            "sample_width": 8, "sample_height": 6,
            "time_embed_dim": 24, "text_embed_dim": 20, "norm_elementwise_affine": False,
        },
        lambda r: {"hidden_states": r(2, 4, 2, 6, 8), "timestep": STEPS, "encoder_hidden_states": r(2, 5, 20)},
    ),
    "cosmos": Case(
        "CosmosTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 20, "adaln_lora_dim": 8,
            "max_size": (4, 8, 8), "concat_padding_mask": False, "extra_pos_embed_type": None,
        },
        lambda r: {"hidden_states": r(2, 4, 2, 4, 6), "timestep": STEPS, "encoder_hidden_states": r(2, 5, 20)},
    ),
    "kandinsky": Case(
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4, "in_text_dim": 20, "in_text_dim2": 12, "time_dim": 24, "out_visual_dim": 4,
            "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
        },
        lambda r: {
            "hidden_states": r(2, 2, 4, 6, 4), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
            "pooled_projections": r(2, 12), "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(3)],
            "text_rope_pos": torch.arange(5),
        },
    ),
    "ltx": Case(
        "LTXVideoTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "num_layers": 2,
            "caption_channels": 20,
        },
        lambda r: {
            "hidden_states": r(2, 12, 4), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
            "encoder_attention_mask": mask(5, 3), "num_frames": 2, "height": 2, "width": 3,
        },
    ),
    "mochi": Case(
        "MochiTransformer3DModel",
        {
            **HEADS, "num_layers": 2, "pooled_projection_dim": 24, "in_channels": 4, "text_embed_dim": 24,
            "time_embed_dim": 8, "max_sequence_length": 5,
        },
        lambda r: {
            "hidden_states": r(2, 4, 2, 4, 6), "encoder_hidden_states": r(2, 5, 24), "timestep": STEPS,
            "encoder_attention_mask": mask(5, 3),
        },
    ),
    "z_image": Case(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 20, "axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16],
        },
        lambda r: {"x": [r(4, 1, 4, 6), r(4, 1, 6, 4)], "t": PART, "cap_feats": [r(5, 20), r(3, 20)]},
    ),
    "lumina2": Case(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1,
            "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 16, 16), "cap_feat_dim": 20,
        },
        lambda r: {
            "hidden_states": r(2, 4, 4, 6), "timestep": PART, "encoder_hidden_states": r(2, 5, 20),
            "encoder_attention_mask": mask(5, 3),
        },
    ),
}  # fmt: skip
