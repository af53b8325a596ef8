# SPDX-License-Identifier: Apache-2.0
"""Diffusion Transformers (Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748).

N batch, C channels, H W image, p patch, h w grid of patches, T = h*w tokens, D width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from dit_fast import nn as dnn
from dit_fast import ops
from dit_fast.diffusion import guide

if TYPE_CHECKING:
    from typing_extensions import Self

CONDITIONING: dict[str, type[dnn.Block]] = {
    "adaln_zero": dnn.AdaLNZeroBlock,
    "adaln": dnn.AdaLNBlock,
    "cross_attention": dnn.CrossAttentionBlock,
    "in_context": dnn.InContextBlock,
}


class Conditioning(NamedTuple):
    """What the blocks take from timesteps and labels.

    blocks: for each block a Modulation a branch, (N, D) rows; last: the final layer's; context: (N, S, D), the embedded
    timestep and label as tokens, for the designs that have them among the tokens or attend to them.
    """

    blocks: list[list[dnn.Modulation]]
    last: dnn.Modulation
    context: Tensor | None


class DiT(nn.Module):
    """A transformer that predicts the noise in an image (and, with `learn_sigma`, the variance of the next step).

    Args:
        input_size: height and width of the latent image, or one number for both. Other sizes divisible by
            `patch_size` work too: their position embeddings are computed as a model of that size would have them.
        patch_size: p. The number of tokens is T = (H/p) * (W/p).
        in_channels: C.
        hidden_size, depth, num_heads, mlp_ratio: D, number of blocks, heads (D / heads is the head dim), and width
            of the MLPs over D.
        class_dropout_prob: chance in training that a label becomes the null label, `num_classes`.
        num_classes: number of labels; 0 for an unconditional model, which takes y = None.
        learn_sigma: 2C output channels, eps and variance, in place of C.
        conditioning: the design of section 3.2: "adaln_zero", "adaln", "cross_attention" or "in_context".

    Raises:
        ValueError: sizes that do not divide, or an unknown design.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        conditioning: Literal["adaln_zero", "adaln", "cross_attention", "in_context"] = "adaln_zero",
    ) -> None:
        super().__init__()
        self.config = {
            "input_size": list(_pair(input_size)),
            "patch_size": patch_size,
            "in_channels": in_channels,
            "hidden_size": hidden_size,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "class_dropout_prob": class_dropout_prob,
            "num_classes": num_classes,
            "learn_sigma": learn_sigma,
            "conditioning": conditioning,
        }
        if conditioning not in CONDITIONING:
            raise ValueError(f"DiT: `conditioning` must be one of {[*CONDITIONING]}, got {conditioning!r}")
        if num_heads < 1 or hidden_size % num_heads or hidden_size % 4:
            raise ValueError(
                f"DiT: `hidden_size` must be a multiple of num_heads ({num_heads}) and of 4, got {hidden_size}"
            )
        self.learn_sigma = learn_sigma
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.patch_size = patch_size
        self.num_heads = num_heads
        self.num_classes = num_classes
        self.conditioning = conditioning
        self.gradient_checkpointing = False
        self.grid = self._grid_of(*_pair(input_size))

        self.x_embedder = dnn.PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = dnn.TimestepEmbedder(hidden_size)
        self.y_embedder = dnn.LabelEmbedder(num_classes, hidden_size, class_dropout_prob) if num_classes else None
        pos = dnn.sincos_2d(*self.grid, hidden_size).float().to(torch.get_default_dtype())  # as all other weights
        self.pos_embed = nn.Parameter(pos[None], requires_grad=False)  # (1, T, D), fixed
        design = CONDITIONING[conditioning]
        self.blocks = nn.ModuleList(design(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.adaptive = conditioning in ("adaln_zero", "adaln")
        self.final_layer = dnn.FinalLayer(hidden_size, patch_size, self.out_channels, self.adaptive)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Xavier-uniform Linears, zero biases, embeddings N(0, 0.02); adaLN-Zero and the output start from 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))  # a view: as a Linear of p*p*C inputs
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        for i in (0, 2):
            nn.init.normal_(self.get_parameter(f"t_embedder.mlp.{i}.weight"), std=0.02)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        if self.conditioning == "adaln_zero":
            for part in (*self.blocks, self.final_layer):
                nn.init.zeros_(part.adaLN_modulation[1].weight)
                nn.init.zeros_(part.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict the noise (and variance) in x.

        Args:
            x: (N, C, H, W), H and W multiples of the patch size.
            t: (N,) timesteps, 0 to 999, integer or fractional.
            y: (N,) integer labels, `num_classes` for none; None for an unconditional model.

        Returns:
            (N, out_channels, H, W) in x's dtype.
        """
        self._check(x, t, y)
        grid = self._grid_of(*x.shape[-2:])
        conditioning = self.condition(t, y)
        return self.denoise(self.embed(x), conditioning, grid)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditioning:
        """What the blocks take from timesteps t (N,) and labels y (N,), whatever the image."""
        c_t, c_y = self._embed_condition(t, y)
        c = c_t if c_y is None else c_t + c_y  # (N, D)
        blocks = [block.modulation(c) for block in self._blocks()]
        context = None if self.adaptive else torch.stack([c_t] if c_y is None else [c_t, c_y], dim=1)
        return Conditioning(blocks, self.final_layer.modulation(c), context)

    def condition_rows(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """All that `condition` computes, as one row a sample: (N, W), for `condition_of` to read.

        A sampler computes these rows once for all its steps. W is (6 depth + 2) D for adaLN-Zero, (4 depth + 2) D for
        adaLN; of the other designs, whose modulations are weights, it is the context's.
        """
        c_t, c_y = self._embed_condition(t, y)
        if not self.adaptive:
            return torch.cat([c_t] if c_y is None else [c_t, c_y], dim=1)
        c = c_t if c_y is None else c_t + c_y
        parts: list[Any] = [*self.blocks, self.final_layer]
        return torch.cat([part.adaLN_modulation(c) for part in parts], dim=1)

    def condition_of(self, rows: Tensor) -> Conditioning:
        """The conditioning that rows (N, W) of `condition_rows` hold, as views of them."""
        d = self.pos_embed.shape[-1]
        if not self.adaptive:
            context = rows.view(len(rows), -1, d)  # (N, S, D)
            like = context[:, 0]  # only its shape matters: shift and scale are weights
            blocks = [block.modulation(like) for block in self._blocks()]
            return Conditioning(blocks, self.final_layer.modulation(like), context)
        parts: list[Any] = [*self.blocks, self.final_layer]
        own = rows.split([part.adaLN_modulation[1].out_features for part in parts], dim=1)
        *blocks, last = (part.split(m) for part, m in zip(parts, own, strict=True))
        return Conditioning(blocks, last, None)

    def embed(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) -> tokens (N, T, D). `positions` (T, D): those of its grid, where they are known already."""
        grid = self._grid_of(*x.shape[-2:])
        return self.x_embedder(x, self.positions(grid) if positions is None else positions)

    def denoise(self, x: Tensor, conditioning: Conditioning, grid: tuple[int, int]) -> Tensor:
        """The rest of `forward`: tokens x (N, T, D) of an h x w grid -> (N, out_channels, H, W)."""
        modulations, last, context = conditioning
        if self.conditioning == "in_context":
            assert context is not None
            x = torch.cat([x, context.to(x.dtype)], dim=1)  # (N, T + S, D)

        first = modulations[0][0] if modulations else last
        h = ops.adaln(x, first.shift, first.scale)  # (N, T, D)
        h = self._through_blocks(x, h, conditioning)
        return self.final_layer(h[:, : grid[0] * grid[1]], grid)  # (N, out_channels, H, W)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        cfg_scale: float,
        cfg_channels: int | Literal["all"] = 3,
    ) -> Tensor:
        """Classifier-free guidance: both halves of the batch predict from the first half of x, and are combined.

        Args:
            x: (2N, C, H, W); only x[:N] is used.
            t: (2N,).
            y: (2N,) the labels asked for, then N null labels.
            cfg_scale: guidance scale; 1 is no guidance.
            cfg_channels: how many of the noise channels are guided. 3 is what the published results used, whatever
                C; "all" guides every one. (Fewer than 3 channels are all guided.)

        Returns:
            (2N, out_channels, H, W): the guided channels alike in both halves, all others per half.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        return guide(out, cfg_scale, cfg_channels, in_channels=self.in_channels)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(T, D) position embeddings of an h x w grid."""
        return dnn.grid_positions(self.pos_embed[0], self.grid, grid)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """In training, recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = enabled

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` to `folder`, each whole or not at all."""
        from .checkpoint import save_folder

        save_folder(self.state_dict(), self.config, folder)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu", **download: Any) -> "Self":
        """A saved model in evaluation mode, in the dtypes it was saved in.

        Args:
            path: a folder of `save_pretrained`, a file of `save_model`, or `owner/name` on the Hugging Face Hub
                (needs huggingface_hub). A path that exists is read without a question to the network.
            download: huggingface_hub's `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            FileNotFoundError: no such path, and not the name of a repository either.
            ValueError: not a checkpoint of this package. Those of the public release and of diffusers:
                `dit-fast convert`, or `dit_fast.integrations.checkpoints.load`.
        """
        from .hub import from_pretrained

        return from_pretrained(cls, path, device, **download)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to `owner/name`; options as huggingface_hub's `push_to_hub` has them.

        Returns the address of the commit. Needs huggingface_hub.
        """
        from .hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    def _embed_condition(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.t_embedder(t), self.y_embedder(y) if self.y_embedder is not None else None  # (N, D) each

    def _blocks(self) -> "list[dnn.Block]":
        return cast("list[dnn.Block]", list(self.blocks))

    def _through_blocks(self, x: Tensor, h: Tensor, conditioning: Conditioning) -> Tensor:
        """h (N, T, D) after all the blocks and the last norm."""
        modulations, last, context = conditioning
        if (done := dnn.blocks_in_one_call(self.blocks, x, h, modulations, last)) is not None:
            return done
        for i, block in enumerate(self.blocks):
            after = modulations[i + 1][0] if i + 1 < len(modulations) else last
            x, h = self._run(block, x, h, modulations[i], after, context)
        return h

    def _run(self, block: nn.Module, *arguments: object) -> tuple[Tensor, Tensor]:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return ops.checkpoint(block, *arguments)
        return block(*arguments)

    def _grid_of(self, height: int, width: int) -> tuple[int, int]:
        p = self.patch_size
        if height % p or width % p or height < p or width < p:
            raise ValueError(
                f"DiT: height and width must be positive multiples of the patch size {p}, got {height} x {width}"
            )
        return height // p, width // p

    def _check(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"DiT: `x` must have shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"DiT: `t` must have shape ({len(x)},) like the batch, got {tuple(t.shape)}")
        if self.y_embedder is None:
            if y is not None:
                raise ValueError("DiT: `y` must be None for an unconditional model (num_classes=0)")
        elif y is None or y.shape != x.shape[:1]:
            got = None if y is None else tuple(y.shape)
            raise ValueError(f"DiT: `y` must be labels of shape ({len(x)},) like the batch, got {got}")
        elif y.is_floating_point():
            raise ValueError(f"DiT: `y` must hold integer labels, got {y.dtype}")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


SIZES = {"XL": (28, 1152, 16), "L": (24, 1024, 16), "B": (12, 768, 12), "S": (12, 384, 6)}

DiT_models: dict[str, Callable[..., DiT]] = {
    f"DiT-{size}/{patch}": partial(
        DiT, depth=depth, hidden_size=width, patch_size=patch, num_heads=heads
    )
    for size, (depth, width, heads) in SIZES.items()
    for patch in (2, 4, 8)
}
"""The paper's 12 models (table 1), by name: `DiT_models["DiT-XL/2"](input_size=32)`."""
