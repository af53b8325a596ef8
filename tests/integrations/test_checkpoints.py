# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of four formats, both ways and bit for bit; what does not fit is named and nothing is written."""

import argparse
import json
import os
import re

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from dit_fast.cli import main
from dit_fast.integrations.checkpoints import FORMATS, convert, formats, load, read
from dit_fast.integrations.checkpoints.architecture import infer, ratio_of
from dit_fast.integrations.checkpoints.diffusers_keys import config_to_diffusers, key_map, same_bits
from dit_fast.models import DiT, DiT_models, save_model
from tests.models.live import live_model

SMALL = dict(input_size=8, hidden_size=48, depth=2, num_heads=2, num_classes=5)


def small(seed=0, **kwargs):
    return live_model(seed, **{**SMALL, **kwargs})


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and same_bits(a[k], b[k]) for k in a)


def target(folder, name, to):
    return folder / (f"{name}.pt" if to in ("release", "sit") else name)


def released(path, model):
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", DiT_models)
def test_the_papers_models_are_known_by_their_weights(name):
    with torch.device("meta"):
        model = DiT_models[name](input_size=64, learn_sigma=False)
    assert infer(shapes(model), "x") == model.config


@pytest.mark.parametrize("name", ["DiT-XL/2", "DiT-S/8"])
def test_diffusers_keys_and_shapes(name):
    with torch.device("meta"):
        model = DiT_models[name]()
        config = {k: v for k, v in config_to_diffusers(model.config).items() if k != "_class_name"}
        theirs = shapes(DiTTransformer2DModel(**config))
    ours, found = shapes(model), {}
    for key, names in key_map(model.config["depth"]).items():
        rows, *rest = ours[key]
        found |= {name: (rows // 3 if "qkv" in key else rows, *rest) for name in names}
    assert found == theirs
    assert {*key_map(model.config["depth"])} == {*ours} - {"pos_embed"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", FORMATS)
def test_round_trips_are_bit_equal(tmp_path, first, dtype):
    model = small().to(dtype)
    for value in model.state_dict().values():
        value.view(-1)[0] *= -0.0 if value.dim() == 1 else 1.0  # a negative zero in each bias keeps its sign
    save_model(model, tmp_path / "start.safetensors")
    where = target(tmp_path, "first", first)
    convert(tmp_path / "start.safetensors", where, first)
    for to in FORMATS:
        heads = {"num_heads": 2} if first in ("release", "sit") else {}
        there = target(tmp_path, f"then_{to}", to)
        convert(where, there, to, **heads)
        back = load(there, **({"num_heads": 2} if to in ("release", "sit") else {}))
        assert same(back.state_dict(), model.state_dict()), to
        assert back.config == model.config and not back.training


@pytest.mark.parametrize(
    "kwargs",
    [dict(learn_sigma=False), dict(class_dropout_prob=0.0), dict(patch_size=4, mlp_ratio=2.7), dict(in_channels=1)],
    ids=lambda k: "-".join(k),
)
def test_custom_models_through_the_release(tmp_path, kwargs):
    model = small(**kwargs)
    save_model(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "release")
    told = {"num_heads": 2} | ({"num_classes": 5} if "class_dropout_prob" in kwargs else {})
    back = load(tmp_path / "b.pt", **told)
    assert same(back.state_dict(), model.state_dict()) and shapes(DiT(**back.config)) == shapes(model)
    assert back.config["mlp_ratio"] == pytest.approx(model.config["mlp_ratio"], abs=0.02)
    assert {**back.config, "mlp_ratio": 0} == {**model.config, "mlp_ratio": 0}


def test_a_ratio_gives_its_width_back():
    assert all(int(width * ratio_of(h, width)) == h for width in (48, 384, 1152, 1000) for h in range(1, 3 * width, 7))


def test_what_convert_writes_for_diffusers_loads_there_whole(tmp_path):
    model = small()
    save_model(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "d", "diffusers")
    theirs, info = DiTTransformer2DModel.from_pretrained(tmp_path / "d", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tables = {b.norm1.emb.class_embedder.embedding_table.weight.data_ptr() for b in theirs.transformer_blocks}
    assert len(tables) == 2


@pytest.mark.parametrize("how", ["sharded", "bin", "pipeline", "old name"])
def test_diffusers_folders_of_every_kind(tmp_path, how):
    model, folder = small(), tmp_path / "d"
    save_model(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", folder, "diffusers")
    if how == "sharded":
        DiTTransformer2DModel.from_pretrained(folder).save_pretrained(tmp_path / "s", max_shard_size="100KB")
        folder = tmp_path / "s"
        assert len([*folder.glob("*.safetensors")]) > 1
    elif how == "bin":
        torch.save(load_file(folder / "diffusion_pytorch_model.safetensors"), folder / "diffusion_pytorch_model.bin")
        (folder / "diffusion_pytorch_model.safetensors").unlink()
    elif how == "pipeline":
        (tmp_path / "p").mkdir()
        folder.rename(tmp_path / "p" / "transformer")
        folder = tmp_path / "p"
        (folder / "model_index.json").write_text("{}")
    else:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("DiTTransformer2DModel", "Transformer2DModel"))
    assert same(load(folder).state_dict(), model.state_dict())


def test_entries_of_a_training_checkpoint(tmp_path):
    ema, raw = small(0), small(1)
    args = argparse.Namespace(model="DiT-custom", num_classes=6)  # as long as the table: no null label
    content = {"ema": ema.state_dict(), "model": {f"module.{k}": v for k, v in raw.state_dict().items()}, "args": args}
    torch.save({**content, "opt": {"state": {}}}, tmp_path / "t.pt")
    read_ema = read(tmp_path / "t.pt", num_heads=2)
    assert same(read_ema.weights, ema.state_dict())
    assert read_ema.config["num_classes"] == 6 and read_ema.config["class_dropout_prob"] == 0
    assert same(read(tmp_path / "t.pt", which="model", num_heads=2).weights, raw.state_dict())
    with pytest.raises(ValueError, match=r"must have an entry `raw` .* among \['ema', 'model', 'opt'\]"):
        read(tmp_path / "t.pt", which="raw")
    with pytest.raises(ValueError, match="holds weights and no entries: --which must be left out, got 'model'"):
        read(released(tmp_path / "r.pt", ema), which="model")


def test_a_state_dict_in_safetensors(tmp_path):
    model = small()
    save_file(model.state_dict(), tmp_path / "s.safetensors")
    assert same(read(tmp_path / "s.safetensors", num_heads=2).weights, model.state_dict())
    with pytest.raises(ValueError, match="--which must be left out, since .* has no entries; got 'ema'"):
        read(tmp_path / "s.safetensors", num_heads=2, which="ema")
    convert(tmp_path / "s.safetensors", tmp_path / "d", "diffusers", num_heads=2)
    with pytest.raises(ValueError, match=r"has diffusers' keys: give the folder that holds it and its config\.json"):
        read(tmp_path / "d" / "diffusion_pytorch_model.safetensors")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": small().state_dict(), "args": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"holds more than weights: .*mkdir"):
        convert(tmp_path / "evil.pt", tmp_path / "out", "dit_fast")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def broken(weights, how):
    if how == "missing":
        del weights["blocks.1.mlp.fc1.bias"]
    elif how == "renamed":
        weights["blocks.1.mlp.fc_1.bias"] = weights.pop("blocks.1.mlp.fc1.bias")
    elif how == "extra":
        weights["blocks.1.mlp.fc3.bias"] = torch.zeros(2)
    elif how == "shape":
        weights["blocks.1.attn.proj.weight"] = torch.zeros(48, 47)
    elif how == "no patches":
        weights["x_embed.proj.weight"] = weights.pop("x_embedder.proj.weight")
    else:
        weights["final_layer.linear.weight"] = torch.zeros(3, 48)
    return weights


@pytest.mark.parametrize(
    "how,message",
    [
        ("missing", r"`blocks.1.mlp.fc1.bias` is missing$"),
        ("renamed", r"`blocks.1.mlp.fc1.bias` is missing \(nearest: `blocks.1.mlp.fc_1.bias`\);"
         r" `blocks.1.mlp.fc_1.bias` is not known \(nearest: `blocks.1.mlp.fc1.bias`\)$"),
        ("extra", r"`blocks.1.mlp.fc3.bias` is not known \(nearest: `blocks.1.mlp.fc\d.bias`\)$"),
        ("shape", r"`blocks.1.attn.proj.weight` must have shape \(48, 48\), got \(48, 47\)$"),
        ("no patches", r"`x_embedder.proj.weight` is missing \(nearest: `x_embed.proj.weight`\)$"),
        ("outputs", r"must have 16 rows for 4 channels, or twice as many with their variance, got 3$"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_named(tmp_path, how, message):
    torch.save(broken(dict(small().state_dict()), how), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "b.pt", tmp_path / "out", "dit_fast", num_heads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["b.pt"]


def test_diffusers_keys_and_copies_that_do_not_fit_are_named(tmp_path):
    save_model(small(), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "d", "diffusers")
    file = tmp_path / "d" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    save_file({**weights, key: weights[key] + 1}, file)
    with pytest.raises(ValueError, match=f"`{key}` is unlike `transformer_blocks.0"):
        read(tmp_path / "d")
    key = "transformer_blocks.1.attn1.to_k.bias"
    save_file({**weights, key: weights[key].bfloat16()}, file)
    with pytest.raises(ValueError, match="must have one dtype, got .*bfloat16"):
        read(tmp_path / "d")
    weights["transformer_blocks.1.attn1.to_key.bias"] = weights.pop(key)
    save_file(weights, file)
    with pytest.raises(ValueError, match=rf"`{key}` is missing \(nearest: `transformer_blocks.1.attn1.to_key.bias`\)"):
        read(tmp_path / "d")


def test_other_files_are_refused(tmp_path, capsys):
    def refused(path, message, **options):
        with pytest.raises(ValueError, match=message):
            convert(path, tmp_path / "out", "dit_fast", **options)
        assert not (tmp_path / "out").exists()

    whole = released(tmp_path / "w.pt", small()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-2000])
    refused(tmp_path / "cut.pt", "is no (whole )?PyTorch checkpoint")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "is no (whole )?PyTorch checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "is no (whole )?PyTorch checkpoint")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    refused(tmp_path / "tensor.pt", "must hold a state dict, got Tensor")
    torch.save({"ema": {"a": 1}}, tmp_path / "number.pt")
    refused(tmp_path / "number.pt", "a state dict maps names to tensors, got 'a': int")
    refused(tmp_path / "w.pt", "no paper's model has depth 2 and width 48, .* say it with --num-heads")
    refused(tmp_path / "w.pt", "--num-classes must be 6, or 5 and a null label, got 9", num_heads=2, num_classes=9)
    save_model(small(), tmp_path / "a.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1000])
    refused(tmp_path / "cut.safetensors", "is not a whole safetensors file")
    refused(tmp_path / "a.safetensors", "--num-heads must be left out", num_heads=2)
    (tmp_path / "f").mkdir()
    refused(tmp_path / "f", "must hold a config.json, it holds \\[\\]")
    (tmp_path / "f" / "config.json").write_text("{")
    refused(tmp_path / "f", "is not JSON")
    (tmp_path / "f" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    refused(tmp_path / "f", "must hold a DiTTransformer2DModel or .* names 'UNet2DModel'")
    (tmp_path / "f" / "config.json").write_text('{"_class_name": "DiTTransformer2DModel", "activation_fn": "geglu"}')
    refused(tmp_path / "f", "`activation_fn` must be 'gelu-approximate' in a DiT, got 'geglu'")
    (tmp_path / "f" / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    refused(tmp_path / "f", r"must hold diffusion_pytorch_model.safetensors, .* it holds \['config.json'\]")
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "out"), "--to", "sit"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_shards_that_do_not_belong_together(tmp_path):
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    key, place = next(iter(content["weight_map"].items()))
    other = sorted({*content["weight_map"].values()} - {place})[0]
    for new, message in [
        ("../x.safetensors", "names the shard '../x.safetensors', which is not in its folder"),
        (other, f"must hold the same keys, `{re.escape(key)}` is in one only"),
    ]:
        index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], key: new}}))
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


@pytest.mark.parametrize(
    "to,kwargs,reason",
    [
        ("release", dict(conditioning="in_context"), "adaLN-Zero design only, this model has in_context"),
        ("diffusers", dict(conditioning="adaln"), "adaLN-Zero design only, this model has adaln$"),
        ("sit", dict(input_size=(8, 4)), "its images are square, this model's are 8 x 4"),
        ("release", dict(num_classes=0), "it always has labels, and this model is unconditional"),
        ("diffusers", dict(num_classes=0), "its label table always ends with a null label, and this model has none"),
        ("diffusers", dict(class_dropout_prob=0.0), "always ends with a null label"),
        ("diffusers", dict(mlp_ratio=2.0), "its MLPs are 4 times as wide as the model, these 2 times"),
    ],
)
def test_a_format_without_a_place_for_a_model_says_why(tmp_path, to, kwargs, reason):
    save_model(small(**kwargs), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"cannot be written as {to}: .*{reason}"):
        convert(tmp_path / "a.safetensors", target(tmp_path, "out", to), to)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_trained_positions_are_not_dropped(tmp_path):
    model = small()
    model.pos_embed.data[0, 0, 0] += 1e-3
    save_model(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="it computes its position embeddings, and these are others"):
        convert(tmp_path / "a.safetensors", tmp_path / "d", "diffusers")


@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, to):
    def full(content, file, **options):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    save_model(small(), tmp_path / "a.safetensors")
    for module, name in ((torch, "save"), (formats, "save_file"), (formats, "save_folder")):
        monkeypatch.setattr(module, name, full)
    monkeypatch.setattr(formats, "save_folder", lambda weights, config, folder: full(0, folder / "model.safetensors"))
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_target_that_exists_is_not_touched(tmp_path):
    save_model(small(), tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_text("mine")
    with pytest.raises(ValueError, match="the target must not exist yet"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "release")
    assert (tmp_path / "b.pt").read_text() == "mine"


def test_the_command_says_what_it_found(tmp_path, capsys):
    released(tmp_path / "r.pt", small().bfloat16())
    command = ["convert", str(tmp_path / "r.pt"), str(tmp_path / "d"), "--to", "diffusers", "--num-heads", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "release (a state dict" in out and "custom DiT: depth 2, width 48, 2 heads, patch 2" in out
    assert "5 classes, a null label, with learned variance" in out and "numbers, bfloat16" in out
    assert main(["convert", str(tmp_path / "d"), str(tmp_path / "o"), "--to", "dit_fast"]) == 0
    assert "note: diffusers runs these weights with other timestep frequencies" in capsys.readouterr().out
    assert main(command) == 2
    assert "must not exist" in capsys.readouterr().err
