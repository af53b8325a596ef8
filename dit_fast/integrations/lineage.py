# SPDX-License-Identifier: Apache-2.0
"""Recipes for the public DiT lineage: DiT, SiT and the forks that kept their attribute names.

| recognised by | called as modules, as before | fused |
|---|---|---|
| a block: norm1, attn, norm2, mlp, adaLN_modulation | adaLN_modulation, attn, mlp | norms with modulation; gates |
| attention: qkv, proj, num_heads | qkv, rope, norm, proj, proj_drop | softmax attention, norms of heads |
| an MLP: fc1, act, fc2 | drop1, norm, fc2, drop2 | fc1 with its GELU (tanh form) |
| the final layer: norm_final, linear, adaLN_modulation | adaLN_modulation, linear | the norm with its modulation |
| a patch embedding: proj, a strided convolution | norm | the convolution and the change of layout |

Each is replaced, checked and reported by itself. In all of them the module's own forward runs a call that the fused one
does not know (other arguments, other numbers of dimensions, active attention dropout).

N batch, T tokens, D width, H heads, Dh = D / H.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dit_fast import ops

from . import parts
from .calls import Handed, Route, Signature, handed_over, route, signature
from .patching import Answer, Replacement, derive, recipe
from .selfcheck import Call, Marked, stand_in

LAYOUTS = {
    6: (("shift1", "scale1", "gate1", "shift2", "scale2", "gate2"),),
    4: (("scale1", "gate1", "scale2", "gate2"), ("shift1", "scale1", "shift2", "scale2")),
}
"""What the chunks of a block's modulation may be, by their number; the check on random weights tells which."""


BRANCHES = ("attn", "mlp")


class FusedBlock(nn.Module):
    """x + gate * branch(norm(x) * (1 + scale) + shift), for attn and then mlp. A shift left out is 0, a gate 1."""

    _fast_signature: Signature
    _fast_route: Route
    _fast_layout: tuple[str, ...]
    norm1: nn.Module
    norm2: nn.Module
    attn: nn.Module
    mlp: nn.Module
    adaLN_modulation: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        bound = self._fast_signature.bind(args, kwargs)
        if bound is None or not self._fast_signature.at_default(bound, 2, self._fast_route.carried):
            return super().forward(*args, **kwargs)
        x, c = (bound[name] for name in self._fast_signature.names[:2])  # (N, T, D), (N, D)
        if not parts.is_tensors(x, c) or x.dim() != 3 or c.dim() != 2:
            return super().forward(*args, **kwargs)
        (_, to_attn), (_, to_mlp) = self._fast_route.parts
        m = dict(zip(self._fast_layout, self.adaLN_modulation(c).chunk(len(self._fast_layout), dim=1), strict=True))
        some = m["scale1"]  # (N, D) as are all
        shift1, shift2 = (m.get(k, some.new_zeros(1, some.shape[1]).expand_as(some)) for k in ("shift1", "shift2"))
        gate1, gate2 = (m.get(k, some.new_ones(1, some.shape[1]).expand_as(some)) for k in ("gate1", "gate2"))

        h = parts.modulated(self.norm1, x, shift1, m["scale1"])  # (N, T, D)
        y = _call(self.attn, h, to_attn, bound)
        x, h = parts.gated_modulated(x, y, gate1, self.norm2, shift2, m["scale2"])
        return parts.gated(x, _call(self.mlp, h, to_mlp, bound), gate2)


def _call(part: Any, h: Tensor, handed: Handed, bound: dict[str, Any]) -> Tensor:
    args, kwargs = handed_over(handed, bound)
    return part(h, *args, **kwargs)


@recipe
def block(module: nn.Module) -> Answer:
    children: dict[str, Any] = dict(module.named_children())
    if not {"norm1", "norm2", "attn", "mlp"} <= children.keys():
        return None
    if "adaLN_modulation" not in children:
        return "a transformer block without adaLN_modulation"
    linears = [m for m in children["adaLN_modulation"].modules() if isinstance(m, nn.Linear)]
    width = _width(children["norm1"], children["attn"])
    if not linears or width is None:
        return "its adaLN_modulation holds no Linear, or its width cannot be read from norm1 or attn"
    layouts = LAYOUTS.get(linears[-1].out_features // width)
    if layouts is None or linears[-1].out_features % width:
        return f"its adaLN_modulation gives {linears[-1].out_features} features, not 6 or 4 times the width {width}"
    found = signature(module)
    if isinstance(found, str):
        return found
    if len(found.names) < 2:
        return f"its forward takes {found.names}, not tokens and a conditioning"
    where = route(module, BRANCHES, width, found)
    if isinstance(where, str):
        return where

    fused = [parts.is_layer_norm(children[name]) for name in ("norm1", "norm2")]
    names = ["adaln"] * fused[0] + ["gated_residual_adaln" if fused[1] else "gated_residual"]
    names += ["gated_residual"] * fused[1]
    return [
        Replacement(
            derive(type(module), FusedBlock, _fast_signature=found, _fast_route=where, _fast_layout=layout),
            tuple(names),
            _block_calls,
        )
        for layout in layouts
    ]


def _block_calls(twin: Any, device: torch.device) -> list[Call]:
    found, width = signature(twin), _width(twin.norm1, twin.attn)
    assert isinstance(found, Signature) and width is not None
    where = route(twin, BRANCHES, width, found)
    assert isinstance(where, Route)
    for part in BRANCHES:
        stand_in(twin, part)
    x, c = _random((2, 6, width), device), _random((2, width), device)
    every = {name: Marked(name) for name in where.carried}
    required = {name: mark for name, mark in every.items() if name not in dict(found.defaults)}
    small = x * 1e-3  # there the norm's eps shows
    return [((x, c), required), ((small, c), required), ((x, c), every)]


class FusedAttention(nn.Module):
    """softmax(q k^T / sqrt(Dh)) v of all tokens. A rope and what norms an op cannot do are called on (N, H, T, Dh)."""

    _fast_signature: Signature
    _fast_rope: bool
    qkv: nn.Module
    num_heads: int

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        bound = self._fast_signature.bind(args, kwargs)
        if bound is None or not self._fast_signature.at_default(bound, 1, ("rope",) if self._fast_rope else ()):
            return super().forward(*args, **kwargs)
        x = bound[self._fast_signature.names[0]]  # (N, T, D)
        if not parts.is_tensors(x) or x.dim() != 3 or not parts.plain(x) or parts.dropping(self, "attn_drop"):
            return super().forward(*args, **kwargs)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (N, T, 3, H, Dh)
        ropes = [r for r in (getattr(self, "rope", None), bound.get("rope")) if r is not None]
        norms = parts.head_norms(self)
        if not ropes and norms is not None and parts.plain(qkv):
            out = ops.attention(qkv, **norms)  # (N, T, D)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, H, T, Dh) each
            q, k = parts.through(self, ("q_norm",), q), parts.through(self, ("k_norm",), k)
            for rope in ropes:
                q, k = rope(q), rope(k)
            if not parts.alike(q, k, v):
                return super().forward(*args, **kwargs)
            out = ops.attention(*(a.transpose(1, 2) for a in (q, k, v)))  # (N, T, D)
        return parts.through(self, ("norm", "proj", "proj_drop"), out)


@recipe
def attention(module: nn.Module) -> Answer:
    children = dict(module.named_children())
    if not {"qkv", "proj"} <= children.keys() or not isinstance(getattr(module, "num_heads", None), int):
        return None
    found = signature(module)
    if isinstance(found, str):
        return found
    needs = [name for name in found.names[1:] if name not in dict(found.defaults) and name != "rope"]
    if needs:
        return f"its attention needs `{needs[0]}`"
    return [
        Replacement(
            derive(type(module), FusedAttention, _fast_signature=found, _fast_rope=takes_rope),
            ("attention",),
            _attention_calls_with_rope if takes_rope else _attention_calls,
        )
        for takes_rope in ((True, False) if "rope" in found.names else (False,))
    ]


def _attention_calls(twin: Any, device: torch.device) -> list[Call]:
    tables = [t for r in [getattr(twin, "rope", None)] if isinstance(r, nn.Module) for t in r.buffers() if t.dim() > 1]
    tokens = max((t.shape[-2] for t in tables), default=6)
    width = twin.qkv.weight.shape[1]
    return [((_random((2, tokens, int(width)), device),), {})]


def _attention_calls_with_rope(twin: Any, device: torch.device) -> list[Call]:
    calls = _attention_calls(twin, device)
    return [*calls, *((args, {"rope": _turn}) for args, _ in calls)]


def _turn(heads: Tensor) -> Tensor:
    """A rotary embedding of (N, H, T, Dh) to check with."""
    angle = torch.arange(heads.shape[2], device=heads.device, dtype=heads.dtype)[:, None]
    return heads * angle.cos() + heads.roll(1, -1) * angle.sin()


class FusedMlp(nn.Module):
    """fc2(gelu(fc1(x))), the first two as one op."""

    _fast_signature: Signature
    fc1: Any
    act: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        bound = self._fast_signature.bind(args, kwargs)
        fused = parts.intact(self.fc1, nn.Linear) and parts.intact(self.act, nn.GELU)
        if bound is None or not fused or not self._fast_signature.at_default(bound, 1, ()):
            return super().forward(*args, **kwargs)
        x = bound[self._fast_signature.names[0]]  # (..., D)
        weight, bias = self.fc1.weight, self.fc1.bias
        if self.act.approximate != "tanh" or not parts.is_tensors(x, bias) or not parts.alike(x, weight, bias):
            return super().forward(*args, **kwargs)
        h = ops.linear_gelu(x, weight, bias)  # (..., hidden)
        drop = "drop" if hasattr(self, "drop") else ""
        return parts.through(self, (drop or "drop1", "norm", "fc2", drop or "drop2"), h)


@recipe
def mlp(module: nn.Module) -> Answer:
    children = dict(module.named_children())
    if {"w12", "w3"} <= children.keys():
        return "a SwiGLU, which no fused op computes"
    if not {"fc1", "act", "fc2"} <= children.keys():
        return None
    fc1, act = children["fc1"], children["act"]
    if type(act) is not nn.GELU or act.approximate != "tanh":
        return f"its activation is {act}, the fused op computes GELU(approximate='tanh')"
    if type(fc1) is not nn.Linear or fc1.bias is None:
        return f"its fc1 is {fc1}, the fused op computes a torch.nn.Linear with a bias"
    found = signature(module)
    if isinstance(found, str):
        return found
    return Replacement(derive(type(module), FusedMlp, _fast_signature=found), ("linear_gelu",), _mlp_calls)


def _mlp_calls(twin: Any, device: torch.device) -> list[Call]:
    return [((_random((2, 6, twin.fc1.in_features), device),), {})]


class FusedFinalLayer(nn.Module):
    """linear(norm(x) * (1 + scale) + shift), the norm and the modulation as one op."""

    norm_final: nn.Module
    linear: nn.Module
    adaLN_modulation: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs or len(args) != 2 or not parts.is_tensors(*args) or args[0].dim() != 3 or args[1].dim() != 2:
            return super().forward(*args, **kwargs)
        x, c = args  # (N, T, D), (N, D)
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(parts.modulated(self.norm_final, x, shift, scale))


@recipe
def final_layer(module: nn.Module) -> Answer:
    children = dict(module.named_children())
    if not {"norm_final", "linear", "adaLN_modulation"} <= children.keys():
        return None
    norm = children["norm_final"]
    if not parts.is_layer_norm(norm):
        return f"its norm is {norm}, the fused op computes a LayerNorm without affine parameters"
    return Replacement(derive(type(module), FusedFinalLayer), ("adaln",), _final_layer_calls)


def _final_layer_calls(twin: Any, device: torch.device) -> list[Call]:
    width = twin.norm_final.normalized_shape[0]
    x, c = _random((2, 6, int(width)), device), _random((2, int(width)), device)
    return [((x, c), {}), ((x * 1e-3, c), {})]


class FusedPatchEmbed(nn.Module):
    """Each patch through one Linear, row by row: (N, C, H, W) -> (N, T, D)."""

    proj: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        own = kwargs or len(args) != 1 or not parts.is_tensors(*args) or args[0].dim() != 4
        if own or not parts.intact(self.proj, nn.Conv2d) or not parts.alike(*args, self.proj.weight):
            return super().forward(*args, **kwargs)
        x, p = args[0], self.proj.stride[0]
        height, width = x.shape[-2:]
        known = getattr(self, "img_size", None) or (height, width)  # other sizes are refused, resized or padded
        if height % p or width % p or height != known[0] or width != known[1] or parts.in_autocast(x):
            return super().forward(x)
        pos = x.new_zeros(1, 1).expand(height // p * (width // p), self.proj.out_channels)  # the model adds its own
        return parts.through(self, ("norm",), ops.patch_embed(x, self.proj.weight, self.proj.bias, pos))


@recipe
def patch_embed(module: nn.Module) -> Answer:
    children = dict(module.named_children())
    proj = children.get("proj")
    if type(proj) is not nn.Conv2d or not children.keys() <= {"proj", "norm"}:
        return None
    p = proj.stride[0]
    if proj.kernel_size != (p, p) or proj.stride != (p, p) or proj.groups != 1 or proj.padding not in (0, (0, 0)):
        return f"its convolution does not cut into patches: {proj}"
    return Replacement(derive(type(module), FusedPatchEmbed), ("patch_embed",), _patch_embed_calls)


def _patch_embed_calls(twin: Any, device: torch.device) -> list[Call]:
    proj: Any = twin.proj
    p = proj.stride[0]
    height, width = getattr(twin, "img_size", None) or (2 * p, 3 * p)
    return [((_random((2, proj.in_channels, height, width), device),), {})]


def _width(norm: nn.Module, attn: nn.Module) -> int | None:
    shape = getattr(norm, "normalized_shape", None) or (getattr(getattr(attn, "qkv", None), "in_features", None),)
    return shape[-1] if isinstance(shape[-1], int) else None


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator).to(device)
