# SPDX-License-Identifier: Apache-2.0
"""The whole model: every backend against the float64 reference model, and against diffusers; compilation."""

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel

from dit_fast.models import CONDITIONING
from dit_fast.ops import use_backend
from dit_fast.parity import DTYPES, check_model, compare

from .live import batch, live_model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("design", CONDITIONING)
def test_model_against_float64(design, backend, dtype):
    model = live_model(conditioning=design, hidden_size=144, depth=2)  # head dim 72
    rows = check_model(model, batch(model, 3, 8, 6), backend, dtype)
    assert len(rows) == 1 + sum(p.requires_grad for p in model.parameters())
    for row in rows:
        assert row.passed, row


def to_diffusers(model, input_size):
    """The same weights in diffusers' model, its two numerical differences from the paper's release neutralised."""
    theirs = DiTTransformer2DModel(
        num_attention_heads=model.num_heads, attention_head_dim=model.pos_embed.shape[-1] // model.num_heads,
        in_channels=model.in_channels, out_channels=model.out_channels, num_layers=len(model.blocks),
        sample_size=input_size, patch_size=model.patch_size, num_embeds_ada_norm=model.num_classes, norm_eps=1e-6,
    ).eval()  # fmt: skip
    ours = model.state_dict()
    state = {k.replace("x_embedder", "pos_embed"): v for k, v in ours.items() if k.startswith("x_embedder")}
    for i in range(len(model.blocks)):
        a, b = f"blocks.{i}.", f"transformer_blocks.{i}."
        for part in ("weight", "bias"):
            q, k, v = ours[f"{a}attn.qkv.{part}"].chunk(3)
            state |= {f"{b}attn1.to_q.{part}": q, f"{b}attn1.to_k.{part}": k, f"{b}attn1.to_v.{part}": v}
            for old, new in [
                (f"{a}attn.proj", f"{b}attn1.to_out.0"), (f"{a}mlp.fc1", f"{b}ff.net.0.proj"),
                (f"{a}mlp.fc2", f"{b}ff.net.2"), (f"{a}adaLN_modulation.1", f"{b}norm1.linear"),
                ("t_embedder.mlp.0", f"{b}norm1.emb.timestep_embedder.linear_1"),
                ("t_embedder.mlp.2", f"{b}norm1.emb.timestep_embedder.linear_2"),
            ]:  # fmt: skip
                state[f"{new}.{part}"] = ours[f"{old}.{part}"]
        state[f"{b}norm1.emb.class_embedder.embedding_table.weight"] = ours["y_embedder.embedding_table.weight"]
    for part in ("weight", "bias"):
        state[f"proj_out_1.{part}"] = ours[f"final_layer.adaLN_modulation.1.{part}"]
        state[f"proj_out_2.{part}"] = ours[f"final_layer.linear.{part}"]
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("pos_embed" in key for key in missing), (missing, unexpected)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # it divides by 127, the paper's release by 128
        block.norm3.eps = 1e-6  # the second norm has 1e-5 whatever norm_eps says
    return theirs


@pytest.mark.parametrize("heads,width", [(2, 144), (3, 192)])
@torch.no_grad()
def test_model_against_diffusers(heads, width):
    model = live_model(hidden_size=width, num_heads=heads, input_size=8)
    x, t, y = batch(model, 4)
    theirs = to_diffusers(model, 8)(x, timestep=t, class_labels=y).sample
    with use_backend("reference"):
        exact = copy.deepcopy(model).double()(x.double(), t, y)
    for backend in ("reference", "cpu", "triton"):
        with use_backend(backend):
            error, eager_error, ratio = compare(model(x, t, y), theirs, exact, torch.float32)
        assert ratio <= 1, (backend, error, eager_error)


def with_gradients(model, called, inputs):
    """The output and all gradients."""
    out = called(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad])]


@pytest.mark.parametrize("design", CONDITIONING)
def test_compiles_as_one_graph(design):
    model = live_model(conditioning=design, class_dropout_prob=0.0)
    double, (x, *rest) = copy.deepcopy(model).double(), batch(model)
    got = with_gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), (x, *rest))
    with use_backend("reference"):
        eager = with_gradients(model, model, (x, *rest))
        exact = with_gradients(double, double, (x.double(), *rest))
    for three in zip(got, eager, exact, strict=True):
        assert compare(*three, torch.float32)[2] <= 1


def test_compiles_with_inductor():
    model = live_model(class_dropout_prob=0.0, depth=1)
    inputs = batch(model)
    out = torch.compile(model, fullgraph=True)(*inputs)
    torch.testing.assert_close(out, model(*inputs))
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_autocast_follows_eager():
    model = live_model(class_dropout_prob=0.0)
    inputs = batch(model)
    exact = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*inputs)
        with use_backend("reference"):
            eager = model(*inputs)
    assert compare(out, eager, exact.detach().double(), torch.bfloat16)[2] <= 1
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
