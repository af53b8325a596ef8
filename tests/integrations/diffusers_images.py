# SPDX-License-Identifier: Apache-2.0
"""Tiny models of images."""

from typing import Any

import torch

from .diffusers_case import HEADS, PART, STEPS, Case, Make, mask


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


def pixart_inputs(r: Make) -> dict[str, Any]:
    return {
        "hidden_states": r(2, 4, 8, 8), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
    }  # fmt: skip


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
    "sana": Case(
        "SanaTransformer2DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 20, "sample_size": 6,
        },
        lambda r: {"hidden_states": r(2, 4, 6, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
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
