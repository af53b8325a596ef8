# SPDX-License-Identifier: Apache-2.0
"""Small models as people write them, with the attribute names of the public DiT lineage: what `patch` meets.

Written from the papers (DiT 2212.09748, SiT 2401.08740, MaskDiT 2306.09305, REPA 2410.06940, LightningDiT 2501.01423)
and from timm's documented attributes. N batch, T tokens, D width, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    """As timm's."""

    def __init__(self, dim, num_heads=2, qk_norm=None, attn_drop=0.0, proj_drop=0.0, fused_attn=True):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale, self.fused_attn = self.head_dim**-0.5, fused_attn
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x, attn_mask=None):
        q, k, v = self.heads(x)
        return self.after(x, self.q_norm(q), self.k_norm(k), v, attn_mask)

    def heads(self, x):
        n, t, _ = x.shape
        return self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def after(self, x, q, k, v, attn_mask=None):
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=p)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            weights = (logits if attn_mask is None else logits + attn_mask).softmax(dim=-1)
            y = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(x.shape)))


class RopeAttention(Attention):
    """Given a rotary embedding of the heads with every call."""

    def forward(self, x, rope=None):
        q, k, v = self.heads(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        return self.after(x, q, k, v)


class Rope(nn.Module):
    """Turns pairs of channels of (N, H, T, Dh) by an angle that grows with the token."""

    def __init__(self, head_dim, tokens):
        super().__init__()
        angle = torch.arange(tokens)[:, None] / 50 ** (torch.arange(head_dim // 2) / (head_dim // 2))
        self.register_buffer("cos", angle.cos().repeat_interleave(2, -1), persistent=False)
        self.register_buffer("sin", angle.sin().repeat_interleave(2, -1), persistent=False)

    def forward(self, heads):
        a, b = heads[..., ::2], heads[..., 1::2]
        turned = torch.stack([-b, a], dim=-1).flatten(-2)
        return (heads * self.cos + turned * self.sin).to(heads.dtype)


class Mlp(nn.Module):
    """As timm's; `drop` applied twice by the one Dropout of older ones."""

    def __init__(self, dim, hidden, act=None, drop=0.0, one_drop=False):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act if act is not None else nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, dim)
        if one_drop:
            self.drop = nn.Dropout(drop)
        else:
            self.drop1, self.norm, self.drop2 = nn.Dropout(drop), nn.Identity(), nn.Dropout(drop)
        self.one_drop = one_drop

    def forward(self, x):
        x = self.act(self.fc1(x))
        if self.one_drop:
            return self.drop(self.fc2(self.drop(x)))
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class PatchEmbed(nn.Module):
    """As timm's; other sizes than img_size are refused."""

    def __init__(self, img_size, patch_size, in_chans, dim):
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.Identity()

    def forward(self, x):
        assert x.shape[-2:] == self.img_size, f"input {tuple(x.shape[-2:])} does not match {self.img_size}"
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Block(nn.Module):
    """adaLN-Zero, as in DiT, SiT, MaskDiT and REPA."""

    def __init__(self, dim, num_heads=2, eps=1e-6, attention=Attention, mlp=None, chunks=6, norm=None, **attn):
        super().__init__()
        norm = norm or (lambda: nn.LayerNorm(dim, elementwise_affine=False, eps=eps))
        self.norm1 = norm()
        self.attn = attention(dim, num_heads, **attn)
        self.norm2 = norm()
        self.mlp = mlp if mlp is not None else Mlp(dim, 4 * dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, chunks * dim))

    def forward(self, x, c):
        a, b, g, d, e, f = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g.unsqueeze(1) * self.attn(modulate(self.norm1(x), a, b))
        return x + f.unsqueeze(1) * self.mlp(modulate(self.norm2(x), d, e))


class LightningBlock(Block):
    """With a rotary embedding from outside, and optionally without shifts."""

    def __init__(self, dim, num_heads=2, shifts=True, **options):
        options.setdefault("mlp", SwiGLU(dim, 2 * dim))
        super().__init__(dim, num_heads, attention=RopeAttention, chunks=6 if shifts else 4, **options)
        self.shifts = shifts

    def forward(self, x, c, feat_rope=None):
        if self.shifts:
            a, b, g, d, e, f = self.adaLN_modulation(c).chunk(6, dim=1)
        else:
            (b, g, e, f), a, d = self.adaLN_modulation(c).chunk(4, dim=1), torch.zeros_like(c), torch.zeros_like(c)
        x = x + g.unsqueeze(1) * self.attn(modulate(self.norm1(x), a, b), rope=feat_rope)
        return x + f.unsqueeze(1) * self.mlp(modulate(self.norm2(x), d, e))


class FinalLayer(nn.Module):
    def __init__(self, dim, features, eps=1e-6):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=eps)
        self.linear = nn.Linear(dim, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiTLike(nn.Module):
    """A whole model. `blocks` are given; `checkpointing` is None, "reentrant" or "not"; `taps` returns tokens after a
    block too, as REPA does; `rope` gives every block a rotary embedding, as LightningDiT does."""

    def __init__(self, blocks, dim=48, size=8, patch=2, channels=4, classes=5, rope=None, tap=None):
        super().__init__()
        self.x_embedder = PatchEmbed(size, patch, channels, dim)
        self.t_embedder = nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.y_embedder = nn.Embedding(classes, dim)
        self.pos_embed = nn.Parameter(torch.randn(1, self.x_embedder.num_patches, dim) * 0.2, requires_grad=False)
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = FinalLayer(dim, patch * patch * channels)
        self.patch, self.size, self.rope, self.tap, self.checkpointing = patch, size, rope, tap, None

    def forward(self, x, t, y):
        n, c, h, w = x.shape
        x = self.x_embedder(x) + self.pos_embed
        cond = self.t_embedder(t[:, None]) + self.y_embedder(y)
        extra = () if self.rope is None else (self.rope,)
        tapped = None
        for i, block in enumerate(self.blocks):
            if self.checkpointing:
                reentrant = self.checkpointing == "reentrant"
                x = torch.utils.checkpoint.checkpoint(block, x, cond, *extra, use_reentrant=reentrant)
            else:
                x = block(x, cond, *extra)
            tapped = x if i == self.tap else tapped
        x, p = self.final_layer(x, cond), self.patch
        x = x.reshape(n, h // p, w // p, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return x if self.tap is None else (x, tapped)


class MaskDiTLike(nn.Module):
    """A DiT whose blocks see a part of the tokens, and a narrower decoder that sees mask tokens too."""

    def __init__(self, dim=48, decoder_dim=32, tokens=16):
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim) for _ in range(2)])
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.decoder_cond = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList([Block(decoder_dim) for _ in range(1)])
        self.final_layer = FinalLayer(decoder_dim, 8)

    def forward(self, x, c, keep):
        n, t, d = x.shape
        x = x.gather(1, keep[:, :, None].expand(-1, -1, d))
        for block in self.blocks:
            x = block(x, c)
        x, c = self.decoder_embed(x), self.decoder_cond(c)
        x = self.mask_token.to(x.dtype).expand(n, t, -1).scatter(1, keep[:, :, None].expand_as(x), x)
        for block in self.decoder_blocks:
            x = block(x, c)
        return self.final_layer(x, c)


def live(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, as nothing is zero in a trained model; norms stay near the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                p.copy_(noise * p.shape[1:].numel() ** -0.5)
            else:
                p.copy_(noise * 0.3 + ("norm" in name and name.endswith("weight")))
    return model.eval()


def dit_like(depth=2, dim=48, seed=0, block=Block, rope=False, tap=None, **options) -> DiTLike:
    blocks = [block(dim, **options) for _ in range(depth)]
    table = Rope(dim // 2, 16) if rope else None
    return live(DiTLike(blocks, dim, rope=table, tap=tap), seed)


def batch(n=3, seed=1, size=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, size, size, generator=generator)
    return x, torch.rand(n, generator=generator), torch.randint(0, 5, (n,), generator=generator)
