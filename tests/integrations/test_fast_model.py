# SPDX-License-Identifier: Apache-2.0
"""FastDiTTransformer2DModel: diffusers' numbers or the paper's, saved and loaded as diffusers' models are."""

import copy
import logging

import pytest
import torch
from diffusers import DiTTransformer2DModel

from dit_fast.integrations import checkpoints
from dit_fast.integrations.diffusers import FastDiTTransformer2DModel
from dit_fast.models import DiT
from dit_fast.ops import BackendUnavailable, use_backend
from dit_fast.ops._core import OPS
from dit_fast.parity import DTYPES, compare, distance, enliven

CONFIG = dict(
    num_attention_heads=2, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
    num_embeds_ada_norm=5,
)  # fmt: skip


def theirs(seed=0, **kwargs):
    """diffusers' model with live values, the same embedders in every block."""
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(**{**CONFIG, **kwargs}).eval()
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
            block.norm1.linear.weight.mul_(3)
    return model


def ours(**kwargs):
    torch.manual_seed(0)
    model = FastDiTTransformer2DModel(**{**CONFIG, **kwargs})
    enliven(model.dit)
    return model.eval()


def batch(n=3, height=8, width=8, classes=5):
    g = torch.Generator().manual_seed(1)
    t = torch.randint(0, 1000, (n,), generator=g)
    return torch.randn(n, 4, height, width, generator=g), t, torch.randint(0, classes, (n,), generator=g)


@pytest.mark.parametrize("norm_eps", [1e-5, 1e-2])
@torch.no_grad()
def test_diffusers_numerics_are_equal_in_float64(norm_eps):
    model, inputs = theirs(norm_eps=norm_eps), batch()
    x, t, y = inputs
    fast = FastDiTTransformer2DModel.from_diffusers(model)
    with use_backend("reference"):
        got = fast.double()(x.double(), t, y).sample
        exact = model.double()(x.double(), timestep=t, class_labels=y).sample
        paper = FastDiTTransformer2DModel.from_diffusers(model, numerics="paper").double()(x.double(), t, y).sample
    assert distance(got, exact)["max"] < 1e-13
    assert distance(paper, exact)["max"] > 1e-4  # the two differ, so that the line above says something


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_diffusers_numerics_in_low_precision(dtype):
    model, (x, t, y) = theirs(), batch()
    exact = copy.deepcopy(model).double()(x.to(dtype).double(), timestep=t, class_labels=y).sample
    eager = copy.deepcopy(model).to(dtype)(x.to(dtype), timestep=t, class_labels=y).sample
    got = FastDiTTransformer2DModel.from_diffusers(model).to(dtype)(x.to(dtype), t, y).sample
    assert got.dtype == dtype and compare(got, eager, exact, dtype)[2] <= 1


@torch.no_grad()
def test_paper_numerics_are_our_own():
    fast, (x, t, y) = ours(numerics="paper"), batch()
    plain = DiT(**fast.dit.config).eval()
    plain.load_state_dict(fast.dit.state_dict())
    assert torch.equal(fast(x, t, y).sample, plain(x, t, y))
    other = ours(numerics="diffusers")
    other.load_state_dict(fast.state_dict())
    assert not torch.allclose(other(x, t, y).sample, plain(x, t, y), atol=1e-4)


def test_gradients_of_diffusers_numerics():
    """With labels kept; diffusers' model has a gradient for each copy of an embedder, ours for the one: their sum."""
    model, (x, t, y) = theirs().double(), batch()
    fast = FastDiTTransformer2DModel.from_diffusers(model)
    cotangent = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    model(x.double(), timestep=t, class_labels=y).sample.backward(cotangent)
    with use_backend("reference"):
        fast(x.double(), t, y).sample.backward(cotangent)
    copies = [block.norm1.emb for block in model.transformer_blocks]
    for got, wanted in [
        (fast.dit.t_embedder.mlp[0].weight, sum(e.timestep_embedder.linear_1.weight.grad for e in copies)),
        (fast.dit.y_embedder.embedding_table.weight, sum(e.class_embedder.embedding_table.weight.grad for e in copies)),
        (fast.dit.blocks[1].mlp.fc1.weight, model.transformer_blocks[1].ff.net[0].proj.weight.grad),
        (fast.dit.final_layer.linear.bias, model.proj_out_2.bias.grad),
    ]:
        torch.testing.assert_close(got.grad, wanted)


def test_from_diffusers_copies_and_keeps_what_it_can(tmp_path):
    model = theirs().bfloat16()
    fast = FastDiTTransformer2DModel.from_diffusers(model)
    assert fast.dtype == torch.bfloat16 and not fast.training
    assert {k: v for k, v in fast.config.items() if k in CONFIG} == CONFIG
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert FastDiTTransformer2DModel.from_diffusers(model.train()).training
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    again = FastDiTTransformer2DModel.from_diffusers(tmp_path, numerics="paper")
    assert again.config.numerics == "paper" and again.dtype == torch.bfloat16
    assert torch.equal(again.dit.blocks[1].attn.qkv.bias[:144], model.transformer_blocks[1].attn1.to_q.bias)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in owner/name; of a repository on a hub"):
        FastDiTTransformer2DModel.from_diffusers("owner/name")
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[0] += 1
    with pytest.raises(ValueError, match="every block must have the same embedders"):
        FastDiTTransformer2DModel.from_diffusers(model)


def arguments_of(model):
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


@torch.no_grad()
def test_save_and_load(tmp_path):
    fast, inputs = ours(numerics="paper"), batch()
    fast.save_pretrained(tmp_path / "fast")
    again = FastDiTTransformer2DModel.from_pretrained(tmp_path / "fast")
    assert arguments_of(again) == arguments_of(fast) and not again.training
    assert torch.equal(again(*inputs).sample, fast(*inputs).sample)
    plain = checkpoints.load(tmp_path / "fast")  # `dit-fast convert` reads it too
    assert torch.equal(plain(*inputs), fast(*inputs).sample)
    half, info = FastDiTTransformer2DModel.from_pretrained(
        tmp_path / "fast", torch_dtype=torch.bfloat16, output_loading_info=True
    )
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and info["missing_keys"] == []
    assert half(inputs[0].bfloat16(), *inputs[1:]).sample.dtype == torch.bfloat16
    theirs().save_pretrained(tmp_path / "slow")
    with pytest.raises(ValueError, match=r"from_diffusers reads a DiTTransformer2DModel"):
        FastDiTTransformer2DModel.from_pretrained(tmp_path / "slow")


def test_what_a_pipeline_and_a_trainer_ask_for():
    fast, (x, t, y) = ours(out_channels=None), batch()
    assert (fast.config.sample_size, fast.config.in_channels, fast.config.out_channels) == (8, 4, 4)
    assert isinstance(fast(x, timestep=t[:1].expand(3), class_labels=y, return_dict=False), tuple)
    fractional = torch.tensor([1.5]).expand(3)
    assert fast(x, timestep=fractional, class_labels=y, cross_attention_kwargs={}).sample.shape == x.shape
    assert fast(x[..., :4], t, y).sample.shape == (3, 4, 8, 4)
    assert sum(p.numel() for p in fast.parameters()) < sum(p.numel() for p in theirs(out_channels=None).parameters())
    with pytest.raises(ValueError, match=r"`cross_attention_kwargs` must be empty, got \['scale'\]"):
        fast(x, t, y, {"scale": 1.0})
    for arguments, name in [((x, None, y), "timestep"), ((x, t), "class_labels")]:
        with pytest.raises(ValueError, match=f"`{name}` must be a tensor, got None"):
            fast(*arguments)


def test_gradient_checkpointing():
    fast, (x, t, y) = ours().train(), batch()
    fast.dit.y_embedder.dropout_prob = 0.0

    def gradient():
        fast.zero_grad()
        fast(x, t, y).sample.square().sum().backward()
        return fast.dit.blocks[0].attn.qkv.weight.grad.clone()

    plain, runs = gradient(), []
    fast.dit.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    fast.enable_gradient_checkpointing()
    assert fast.is_gradient_checkpointing and torch.equal(gradient(), plain) and len(runs) == 2
    fast.disable_gradient_checkpointing()
    assert torch.equal(gradient(), plain) and len(runs) == 3
    with pytest.raises(ValueError, match="`gradient_checkpointing_func` must be None"):
        fast.enable_gradient_checkpointing(print)


def test_the_attention_backend_is_this_models_alone(monkeypatch):
    chosen = []
    select = OPS["attention"].select

    def spy(*tensors):
        chosen.append(select(*tensors))
        return chosen[-1]

    monkeypatch.setattr(OPS["attention"], "select", spy)
    pinned, free, inputs = ours(), ours(), batch()
    plain = free(*inputs).sample
    auto = list(chosen)
    for backend in ("reference", "sdpa", "triton"):
        pinned.set_attention_backend(backend)
        chosen.clear()
        torch.testing.assert_close(pinned(*inputs).sample, plain)
        free(*inputs)
        assert chosen == [backend] * 2 + auto
    other = copy.deepcopy(pinned)
    other.reset_attention_backend()
    chosen.clear()
    other(*inputs), pinned(*inputs)
    assert chosen == [*auto, "triton", "triton"] and "triton" not in auto
    pinned.set_attention_backend("cuda")
    with pytest.raises(BackendUnavailable, match="attention: backend 'cuda' cannot run here: tensors are on cpu"):
        pinned(*inputs)
    with pytest.raises(ValueError, match=r"`backend` must be one of \['auto', 'reference', .* got 'flash_3'"):
        pinned.set_attention_backend("flash_3")


@torch.no_grad()
def test_a_pinned_backend_compiles_as_one_graph():
    torch._dynamo.reset()
    fast, inputs = ours(num_layers=1), batch()
    fast.set_attention_backend("reference")
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs).sample, fast(*inputs).sample)
    assert compiled(inputs[0], inputs[1], torch.full((3,), 1000)).sample.isfinite().all()


def test_labels():
    fast, (x, t, _) = ours(), batch()
    null = fast(x, t, torch.tensor([5, 5, 5])).sample
    assert torch.equal(fast(x, t, torch.tensor([1000, 5, 1000])).sample, null)
    assert not torch.allclose(fast(x, t, torch.tensor([4, 4, 4])).sample, null, atol=1e-4)
    for wrong in (-1, 6, 999, 1001):
        with pytest.raises(ValueError, match=f"`class_labels` must be from 0 to 4, 5 or 1000 for none, got {wrong}"):
            fast(x, t, torch.tensor([0, wrong, 1000]))


def test_more_than_a_thousand_classes(caplog):
    with caplog.at_level(logging.WARNING, "dit_fast"):
        fast, (x, t, _) = ours(num_embeds_ada_norm=1500), batch()
    assert "has 1500 classes: label 1000 is one of them" in caplog.text
    of_class = fast(x, t, torch.tensor([1000] * 3)).sample
    assert not torch.allclose(of_class, fast(x, t, torch.tensor([1500] * 3)).sample, atol=1e-4)
    with pytest.raises(ValueError, match="must be from 0 to 1499, 1500 for none, got 1501"):
        fast(x, t, torch.tensor([1501] * 3))


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(numerics="theirs"), "`numerics` must be 'paper' or 'diffusers', got 'theirs'"),
        (dict(dropout=0.1), "`dropout` must be 0.0 in a DiT, got 0.1"),
        (dict(attention_bias=False), "`attention_bias` must be True in a DiT"),
        (dict(norm_type="layer_norm"), "`norm_type` must be 'ada_norm_zero'"),
        (dict(out_channels=5), r"`out_channels` must be in_channels \(4\) or twice that, got 5"),
        (dict(num_embeds_ada_norm=None), "`num_embeds_ada_norm` must be the number of classes"),
    ],
)
def test_arguments_a_dit_has_no_place_for(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FastDiTTransformer2DModel(**{**CONFIG, **kwargs})
