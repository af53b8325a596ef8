# SPDX-License-Identifier: Apache-2.0
"""Tiny models of videos."""

from typing import Any

import torch
from torch import nn

from .diffusers_case import HEADS, STEPS, Case, Make, mask

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


def _shrink_text(model: nn.Module) -> None:
    model.context_embedder_2 = type(model.context_embedder_2)(20, 16, 32)


CASES = {
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
    "sana_video": Case(
        "SanaVideoTransformer3DModel",
        {
            **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 20, "sample_size": 6,
            "rope_max_seq_len": 32,
        },
        lambda r: {"hidden_states": r(2, 4, 2, 6, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
    ),
    "joyimage": Case(
        "JoyImageEditTransformer3DModel",
        {
            "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 20, "num_layers": 2,
            "rope_dim_list": [4, 6, 6],
        },
        lambda r: {"hidden_states": r(2, 4, 1, 4, 6), "encoder_hidden_states": r(2, 5, 20), "timestep": STEPS},
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
}  # fmt: skip
