# SPDX-License-Identifier: Apache-2.0
"""The model's surface: keys, sizes, initialisation, conditioning designs, other resolutions, guidance, errors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dit_fast.models import CONDITIONING, DiT, DiT_models, count_macs
from dit_fast.nn import sincos_2d, timestep_features
from dit_fast.ops import use_backend

from .live import batch, live_model

PAPER_GMACS = {
    "S": (0.36, 1.41, 6.06), "B": (1.42, 5.56, 23.01), "L": (5.01, 19.70, 80.71), "XL": (7.39, 29.05, 118.64),
}  # fmt: skip
PARAMETERS = {"S": 32_963_360, "B": 130_512_416, "L": 458_102_816, "XL": 675_129_632}
DESIGNS = {"in_context": (119.4, 449e6), "cross_attention": (137.6, 598e6), "adaln": (118.6, 600e6)}


def on_meta(name="DiT-XL/2", **kwargs) -> DiT:
    with torch.device("meta"):
        return DiT_models[name](**kwargs)


def test_state_dict_of_xl2():
    state = on_meta().state_dict()
    expected = {
        "pos_embed": (1, 256, 1152),
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "x_embedder.proj.bias": (1152,),
        "t_embedder.mlp.0.weight": (1152, 256),
        "t_embedder.mlp.0.bias": (1152,),
        "t_embedder.mlp.2.weight": (1152, 1152),
        "t_embedder.mlp.2.bias": (1152,),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "final_layer.linear.weight": (32, 1152),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
        "final_layer.adaLN_modulation.1.bias": (2304,),
    }
    per_block = {
        "attn.qkv": (3456, 1152), "attn.proj": (1152, 1152), "mlp.fc1": (4608, 1152), "mlp.fc2": (1152, 4608),
        "adaLN_modulation.1": (6912, 1152),
    }  # fmt: skip
    for i in range(28):
        for layer, shape in per_block.items():
            expected[f"blocks.{i}.{layer}.weight"] = shape
            expected[f"blocks.{i}.{layer}.bias"] = shape[:1]
    assert len(expected) == 292
    assert {k: tuple(v.shape) for k, v in state.items()} == expected


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_and_gmacs_of_the_paper(size):
    models = [on_meta(f"DiT-{size}/{p}") for p in (8, 4, 2)]
    assert sum(p.numel() for p in models[2].parameters()) == PARAMETERS[size]
    for model, expected in zip(models, PAPER_GMACS[size], strict=True):
        assert count_macs(model, 32, 32) / 1e9 == pytest.approx(expected, rel=0.01, abs=0.005)


def test_gmacs_at_512():
    assert count_macs(on_meta(input_size=64), 64, 64) / 1e9 == pytest.approx(524.6, rel=0.01)


@pytest.mark.parametrize("design", DESIGNS)
def test_conditioning_designs_cost_what_the_paper_says(design):
    model = on_meta(conditioning=design)
    gmacs, parameters = DESIGNS[design]
    assert count_macs(model, 32, 32) / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("design", CONDITIONING)
def test_macs_agree_with_pytorchs_own_count(design):
    with torch.device("meta"):
        model = DiT(input_size=16, hidden_size=128, depth=3, num_heads=2, conditioning=design).eval()
        inputs = torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    assert counter.get_total_flops() == 2 * count_macs(model, 16, 16)


def test_fresh_model_predicts_exactly_zero_and_starts_as_the_paper_says():
    torch.manual_seed(0)
    model = DiT(input_size=8, hidden_size=384, depth=2, num_heads=6)
    assert torch.equal(model.eval()(*batch(model)), torch.zeros(3, 8, 8, 8))
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.02)
    for name in ("blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "x_embedder.proj.weight"):
        weight = model.get_parameter(name).detach().flatten(1)
        bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not model.get_parameter("blocks.1.attn.qkv.bias").any()
    assert not model.pos_embed.requires_grad


def test_position_embedding_puts_the_column_first():
    pos = sincos_2d(2, 3, 8)  # tokens row by row; channels [col sin, col cos, row sin, row cos], 2 each
    column, row = torch.tensor([0.0, 1, 2] * 2), torch.tensor([0.0] * 3 + [1.0] * 3)
    torch.testing.assert_close(pos[:, 0], column.double().sin())
    torch.testing.assert_close(pos[:, 3], (column.double() / 100).cos())
    torch.testing.assert_close(pos[:, 4], row.double().sin())
    torch.testing.assert_close(pos[:, 7], (row.double() / 100).cos())


def test_timestep_features_are_cos_then_sin():
    f = timestep_features(torch.tensor([7.0, 0.5]))
    assert f.shape == (2, 256) and f.dtype == torch.float32
    torch.testing.assert_close(f[:, 0], torch.tensor([7.0, 0.5]).cos())
    torch.testing.assert_close(f[:, 128 + 64], (torch.tensor([7.0, 0.5]) / 100).sin())


@pytest.mark.parametrize("design", CONDITIONING)
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 6)])
def test_other_sizes_and_every_design(design, size):
    model = live_model(conditioning=design)
    x, t, y = batch(model, 3, *size)
    out = model(x, t, y)
    assert out.shape == (3, 8, *size)
    for i in range(3):  # samples do not mix, and t and y matter
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], y[i : i + 1]), out[i : i + 1])
    assert not torch.allclose(model(x, t.flip(0), y), out, atol=1e-3)
    assert not torch.allclose(model(x, t, (y + 1) % 5), out, atol=1e-3)


def test_another_size_is_what_a_model_of_that_size_computes():
    small, wide = live_model(), live_model(input_size=(4, 12))
    wide.load_state_dict({**small.state_dict(), "pos_embed": wide.pos_embed})
    inputs = batch(small, 2, 4, 12)
    torch.testing.assert_close(small(*inputs), wide(*inputs))


@pytest.mark.parametrize("design", CONDITIONING)
def test_unconditional(design):
    model = live_model(num_classes=0, conditioning=design)
    assert not any("y_embedder" in key for key in model.state_dict())
    x, t, y = batch(model)
    assert y is None and model(x, t).shape == (3, 8, 8, 8)
    with pytest.raises(ValueError, match="`y` must be None"):
        model(x, t, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("design", CONDITIONING)
def test_gradient_checkpointing_changes_no_gradient(design):
    def gradients(checkpointing):
        model = live_model(conditioning=design, class_dropout_prob=0.0).train()
        model.enable_gradient_checkpointing(checkpointing)
        model(*batch(model)).square().sum().backward()
        return {k: p.grad for k, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    assert all(g is not None for g in plain.values())
    for key, value in plain.items():
        assert torch.equal(recomputed[key], value), key


def test_recomputation_uses_the_backend_of_its_forward():
    def gradient(checkpointing):
        model = live_model(class_dropout_prob=0.0).train()
        model.enable_gradient_checkpointing(checkpointing)
        with use_backend("reference"):
            loss = model(*batch(model)).square().sum()
        loss.backward()  # outside: `auto` would choose other kernels
        return model.blocks[0].attn.qkv.weight.grad

    assert torch.equal(gradient(True), gradient(False))


def test_labels_are_dropped_in_training_only():
    model = live_model(class_dropout_prob=0.5)
    labels = torch.zeros(4000, dtype=torch.long)
    table = model.y_embedder.embedding_table.weight
    assert table.shape[0] == 6
    assert torch.equal(model.y_embedder(labels), table[labels])
    dropped = (model.y_embedder.train()(labels) == table[5]).all(1).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)
    forced = model.y_embedder(labels[:2], force_drop_ids=torch.tensor([1, 0]))
    assert torch.equal(forced, table[[5, 0]])
    assert live_model(class_dropout_prob=0.0).y_embedder.embedding_table.weight.shape[0] == 5


@pytest.mark.parametrize("channels", [3, "all"])
def test_guidance_leaves_the_fourth_channel_and_sigma_alone(channels):
    model = live_model()
    x, t, y = batch(model, 4)
    t[2:], y[2:] = t[:2], 5
    scale, guided = 3.0, 4 if channels == "all" else 3
    out = model.forward_with_cfg(x, t, y, scale, channels)
    plain = model(torch.cat([x[:2], x[:2]]), t, y)
    eps = plain[2:, :guided] + scale * (plain[:2, :guided] - plain[2:, :guided])
    torch.testing.assert_close(out[:, :guided], torch.cat([eps, eps]))
    torch.testing.assert_close(out[:, guided:], plain[:, guided:])
    noise = torch.cat([x[:2], torch.full_like(x[2:], float("nan"))])
    assert torch.equal(model.forward_with_cfg(noise, t, y, scale, channels), out)


def test_errors_say_what_was_expected_and_what_came():
    model = live_model()
    x, t, y = batch(model)
    for arguments, message in [
        ((x[:, :3], t, y), r"`x` must have shape \(N, 4, H, W\), got \(3, 3, 8, 8\)"),
        ((x[..., :7], t, y), "multiples of the patch size 2, got 8 x 7"),
        ((x, t[:2], y), r"`t` must have shape \(3,\) like the batch, got \(2,\)"),
        ((x, t, y[:2]), r"`y` must be labels of shape \(3,\) like the batch, got \(2,\)"),
        ((x, t), "`y` must be labels .* got None"),
        ((x, t, y.float()), r"`y` must hold integer labels, got torch\.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    with pytest.raises(ValueError, match="`conditioning` must be one of .* got 'film'"):
        DiT(conditioning="film")
    with pytest.raises(ValueError, match=r"`hidden_size` must be a multiple of num_heads \(5\)"):
        DiT(hidden_size=64, num_heads=5)
    with pytest.raises(ValueError, match="multiples of the patch size 8, got 12 x 12"):
        DiT(input_size=12, patch_size=8)
