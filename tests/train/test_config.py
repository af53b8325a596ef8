# SPDX-License-Identifier: Apache-2.0
"""A configuration: every bad value is refused by name, and one precedence joins preset, file and flags."""

import dataclasses

import pytest
import yaml

from dit_fast.models import DiT_models
from dit_fast.train.config import HINTS, TrainConfig
from dit_fast.train.configfile import FIELDS, field_help, load_config, save_config
from dit_fast.train.presets import PRESETS
from dit_fast.train.values import read

BAD = {
    "lr": [("fast", "a number"), (0, "above 0"), (float("nan"), "above 0"), (True, "a number")],
    "steps": [
        (1.5, "a whole number"), ("1.5", "a whole number"), (float("inf"), "a whole number"), (0, "at least 1"),
        ("many", "a whole number"),
    ],
    "flip": [(1, "true or false"), ("maybe", "true or false")],
    "betas": [((0.9,), "2 values"), ((0.9, 1.0), "two numbers from 0"), (0.9, "2 values")],
    "precision": [("bf61", "one of float32, bf16, pure_bf16, got 'bf61'; the nearest known one is bf16")],
    "model": [("DiT-XL/3", "one of DiT, DiT-XL/2")],
    "model_args": [
        ({"hiden_size": 96}, "the nearest known one is hidden_size"), ({"num_classes": 3}, "from `num_classes`"),
        ("depth", "key=value"), ({"depth": "deep"}, "a whole number, got 'deep'"), ([3], "a mapping"),
        ("{a: [", "JSON"), ("depth=[", "JSON"),
    ],
    "ema": [(1.5, "from 0 to 1")],
    "class_dropout_prob": [(-0.1, "from 0 to 1")],
    "num_classes": [(-1, "at least 0")],
    "max_grad_norm": [(float("inf"), "at least 0"), (-1.0, "at least 0")],
    "sample_count": [(0, "at least 1")],
    "peak_tflops": [(0, "above 0"), ("big", "a number")],
    "out": [(3, "text")],
    "compile": [("max-autotun", "the nearest known one is max-autotune"), (1, "true or false or text")],
}  # fmt: skip


@pytest.mark.parametrize("name,value,expected", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_a_bad_value_names_the_field_what_was_expected_and_what_came(name, value, expected):
    with pytest.raises(ValueError) as error:
        TrainConfig(**{name: value})
    assert f"`{name}" in str(error.value) and expected in str(error.value) and ", got " in str(error.value)


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(batch_size=10, accumulate=4), "`batch_size` must be a multiple of `accumulate`, 4, got 10"),
        (dict(shard=2), "`shard` must be 0 where `parallel` is 'ddp', got 2"),
        (dict(flow_times="logit_normal"), "`flow_times` must be left alone where `objective` is 'ddpm'"),
        (dict(objective="flow", noise_schedule="squaredcos_cap_v2"), "`noise_schedule` must be left alone"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    "name,text,value",
    [
        ("lr", "1e-4", 1e-4), ("lr", 1, 1.0), ("steps", "4e5", 400_000), ("steps", "400_000", 400_000),
        ("steps", 4e5, 400_000), ("seed", 2**60 + 1, 2**60 + 1), ("seed", str(2**60 + 1), 2**60 + 1),
        ("flip", "no", False), ("betas", "0.9,0.95", (0.9, 0.95)), ("betas", ["0.9", 0.95], (0.9, 0.95)),
        ("num_classes", "none", None), ("num_classes", "7", 7), ("wandb", "none", None), ("wandb", "dit", "dit"),
        ("compile", "true", True), ("compile", "max-autotune", "max-autotune"), ("tensorboard", None, None),
        ("model_args", "hidden_size=96, depth=3", {"hidden_size": 96, "depth": 3}),
        ("model_args", '{"mlp_ratio": "2"}', {"mlp_ratio": 2.0}),
        ("model_args", ["depth=3", "depth=4,learn_sigma=false"], {"depth": 4, "learn_sigma": False}),
    ],
)  # fmt: skip
def test_text_is_read_by_the_type_of_the_field(name, text, value):
    found = getattr(TrainConfig(**{name: text}), name)
    assert found == value and type(found) is type(value)


def test_flags_over_file_over_preset_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 2e-4\nema: 0.99\nmodel_args: {depth: 6}\nbatch_size: 64\n")
    config = load_config("digits", file, {"ema": "0.9", "model_args": ["num_heads=6"]})
    assert (config.ema, config.lr, config.warmup, config.weight_decay) == (0.9, 2e-4, 100, 0.0)
    assert config.batch_size == 64
    assert config.model_args == {"patch_size": 2, "hidden_size": 96, "depth": 6, "num_heads": 6}
    assert load_config("digits", file, {"model": "DiT-S/2"}).model_args == {}  # they were another model's
    file.write_text("preset: digits\nsteps: 3\n")
    assert load_config(None, file).batch_size == 128 and load_config("DiT-S/2", file).batch_size == 256


def test_unknown_keys_name_the_nearest_known_one_and_where_they_stand(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batchsize: 3\n")
    with pytest.raises(ValueError, match=r"unknown key `batchsize` in .*run.yaml; the nearest known one is batch_size"):
        load_config(None, file)
    with pytest.raises(ValueError, match="unknown key `stepz` in flags; the nearest known one is steps"):
        load_config(flags={"stepz": 3})
    with pytest.raises(ValueError, match="`preset` must be one of .*, got 'digit'; the nearest known one is digits"):
        load_config("digit")
    for text, message in (("a: [", "is not YAML"), ("- 3", "must hold `key: value` lines, got list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(None, file)
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        load_config(None, tmp_path / "none.yaml")
    file.write_text("")
    assert load_config(None, file) == TrainConfig()


def test_a_saved_configuration_is_read_back_whole(tmp_path):
    changed = {"lr": 1e-5, "betas": (0.5, 0.6), "num_classes": 0, "compile": "reduce-overhead", "data": "123"}
    for config in (TrainConfig(), load_config("digits", None, changed)):
        save_config(config, tmp_path / "config.yaml")
        assert load_config(None, tmp_path / "config.yaml") == config
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()).keys() == set(FIELDS)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_defaults_are_the_papers_recipe_and_presets_are_the_papers_models():
    assert PRESETS.keys() == {*DiT_models, "digits"}
    for name in DiT_models:
        config = load_config(name)
        assert dataclasses.replace(config, model="DiT-XL/2", out="runs/train") == TrainConfig() and config.model == name
    paper = TrainConfig()
    recipe = paper.lr, paper.weight_decay, paper.ema, paper.batch_size, paper.flip, paper.warmup, paper.lr_schedule
    assert recipe == (1e-4, 0, 0.9999, 256, True, 0, "constant")


def test_every_field_has_a_help_and_a_type_that_reads_its_default():
    assert field_help().keys() == HINTS.keys() == set(FIELDS)
    assert all(len(text) > 5 for text in field_help().values())
    for name, hint in HINTS.items():
        assert read(name, hint, getattr(TrainConfig(), name)) == getattr(TrainConfig(), name)
