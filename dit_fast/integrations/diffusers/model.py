# SPDX-License-Identifier: Apache-2.0
"""A DiT that is a diffusers model: the transformer of a DiTPipeline. N batch, C channels, H W image."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from dit_fast import ops
from dit_fast.models import DiT
from dit_fast.nn import Attention
from dit_fast.ops._core import OPS

from ..checkpoints.diffusers_keys import config_from_diffusers, from_diffusers
from ..checkpoints.files import load_diffusers_weights, load_json

if TYPE_CHECKING:
    from typing_extensions import Self

PIPELINE_NULL = 1000
"""The label that DiTPipeline guides away from, whatever the number of classes."""

log = logging.getLogger("dit_fast")


class PinnedAttention(Attention):
    """Attention on a backend of its own, whatever `use_backend` says around it."""

    attention_backend: str

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        with ops.use_backend(attention=self.attention_backend):
            return super().forward(x, rope)


class FastDiTTransformer2DModel(ModelMixin, ConfigMixin):
    """`dit_fast.models.DiT` with the arguments and the forward of diffusers' DiTTransformer2DModel.

    It holds one copy of the embedders, where diffusers' model has one in every block: 675 M parameters for an XL/2,
    not 750 M; and it drops a label once in training, for all blocks. Sizes other than `sample_size` work, non-square
    too.

    Args:
        num_attention_heads, attention_head_dim, in_channels, out_channels, num_layers, sample_size, patch_size,
            num_embeds_ada_norm: as diffusers has them; out_channels is in_channels or twice that. norm_eps is the
            second norm's of every block.
        dropout, attention_bias, activation_fn, norm_type, norm_elementwise_affine: have one value in a DiT.
        norm_num_groups, upcast_attention: change nothing, as in diffusers' DiT (logits and softmax are float32).
        numerics: "diffusers" computes what diffusers' model does with the same weights, "paper" what the public
            release does: timestep frequencies over 128, not 127, and every norm's eps 1e-6, whatever `norm_eps` says.

    Labels are 0 to num_embeds_ada_norm - 1, and num_embeds_ada_norm for none. 1000 also means none where it is no
    class: DiTPipeline has that null label hard-coded. Of a model with more than 1000 classes it is a class; the
    constructor warns that DiTPipeline then guides away from that class (use guidance_scale=1, or a loop of your own).

    Raises:
        ValueError: an argument that a DiT has no place for.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AdaLNZeroBlock"]  # noqa: RUF012 (diffusers' own declaration)
    _repeated_blocks = ["AdaLNZeroBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["x_embedder", "pos_embed", "norm"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        numerics: Literal["paper", "diffusers"] = "diffusers",
    ) -> None:
        super().__init__()
        if numerics not in ("paper", "diffusers"):
            raise ValueError(f"{type(self).__name__}: `numerics` must be 'paper' or 'diffusers', got {numerics!r}")
        self.dit = DiT(**config_from_diffusers(self.config, type(self).__name__))
        self.register_to_config(out_channels=self.dit.out_channels)  # DiTPipeline computes with it
        if numerics == "diffusers":
            self.dit.t_embedder.downscale = 1
            for block in self._blocks():
                block.norm2_eps = norm_eps
        if self.dit.num_classes > PIPELINE_NULL:
            log.warning(
                "%s has %d classes: label %d is one of them, and DiTPipeline takes it for the null label",
                type(self).__name__, self.dit.num_classes, PIPELINE_NULL,
            )  # fmt: skip

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """As DiTTransformer2DModel's.

        Args:
            hidden_states: (N, C, H, W).
            timestep: (N,), integer or fractional.
            class_labels: (N,) integers. Their range is checked on the CPU only: elsewhere it would wait for the device.
            cross_attention_kwargs: nothing in a DiT takes any; must be empty.

        Returns:
            an object whose `sample` is (N, out_channels, H, W), or with return_dict=False a tuple of it.
        """
        if cross_attention_kwargs:
            raise ValueError(
                f"{type(self).__name__}: `cross_attention_kwargs` must be empty, got {sorted(cross_attention_kwargs)}"
            )
        if timestep is None or class_labels is None:
            missing = "timestep" if timestep is None else "class_labels"
            raise ValueError(f"{type(self).__name__}: `{missing}` must be a tensor, got None")
        sample = self.dit(hidden_states, timestep, self._labels(class_labels))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _blocks(self) -> list[Any]:
        return list(self.dit.blocks)

    def _labels(self, labels: Tensor) -> Tensor:
        """With the pipeline's null label as this model's own."""
        null = self.dit.num_classes
        also = ""
        if null < PIPELINE_NULL:
            also = f" or {PIPELINE_NULL}"
            labels = torch.where(labels == PIPELINE_NULL, null, labels)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[(labels < 0) | (labels > null)]
            if len(wrong):
                raise ValueError(
                    f"{type(self).__name__}: `class_labels` must be from 0 to {null - 1}, {null}{also} for none, got"
                    f" {wrong[0].item()}"
                )
        return labels

    def set_attention_backend(self, backend: str) -> None:
        """Run this model's attention on one of dit_fast's backends, whatever `use_backend` says: "reference", "cpu",
        "triton", "cuda", "sdpa", "flash_attn", one that was registered, or "auto". A call runs on it or raises its
        reason.
        """
        known = ["auto", *OPS["attention"].names()]
        if backend not in known:
            raise ValueError(f"set_attention_backend: `backend` must be one of {known}, got {backend!r}")
        for block in self._blocks():
            block.attn.__class__ = PinnedAttention
            block.attn.attention_backend = backend

    def reset_attention_backend(self) -> None:
        """Attention follows `use_backend` again, as at first."""
        for block in self._blocks():
            block.attn.__class__ = Attention

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """In training, recompute each block in the backward pass instead of keeping its activations."""
        if gradient_checkpointing_func is not None:
            raise ValueError(
                f"{type(self).__name__}: `gradient_checkpointing_func` must be None: recomputation has to run on the"
                f" backend of its forward, which dit_fast's own does; got {gradient_checkpointing_func!r}"
            )
        super().enable_gradient_checkpointing()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """ModelMixin's, for what `save_pretrained` of this class wrote; every weight must be there, and no other."""
        wanted = options.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **options)
        unlike = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if unlike:
            raise ValueError(
                f"{cls.__name__}: {pretrained_model_name_or_path} must hold its weights and no others, {len(unlike)} do"
                f" not fit: {unlike[0]!r}, ...; {cls.__name__}.from_diffusers reads a DiTTransformer2DModel"
            )
        return (model, info) if wanted else model

    @classmethod
    def from_diffusers(
        cls, model: "DiTTransformer2DModel | str | Path", numerics: Literal["paper", "diffusers"] = "diffusers"
    ) -> "Self":
        """The same weights and configuration as a DiTTransformer2DModel's, or as a folder's that one was saved in.

        The weights keep their device and dtypes; those of a model are copied.

        Raises:
            ValueError: a model that is no DiT, keys that do not fit, or blocks with embedders of their own.
        """
        training, copy = False, not isinstance(model, str | Path)
        if isinstance(model, str | Path):
            folder = Path(model)
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(
                    f"{cls.__name__}.from_diffusers: no config.json in {folder}; of a repository on a hub, give what"
                    f" DiTTransformer2DModel.from_pretrained makes of it"
                )
            where, config, theirs = str(folder), load_json(folder / "config.json"), load_diffusers_weights(folder)
        else:
            where, config, theirs = type(model).__name__, dict(model.config), model.state_dict()
            training = model.training
        weights = from_diffusers(theirs, config_from_diffusers(config, where), where)
        device = next(iter(theirs.values())).device
        with torch.device("meta"):
            fast = cls(**{k: v for k, v in config.items() if k in cls._get_init_keys(cls)}, numerics=numerics)
        fast.dit.load_state_dict({key: value.to(device, copy=copy) for key, value in weights.items()}, assign=True)
        return fast.train(training)
