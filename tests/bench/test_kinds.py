# SPDX-License-Identifier: Apache-2.0
"""Each kind of benchmark on a tiny model: what is right is timed beside its peers, what is wrong is refused."""

import json
import shlex
from dataclasses import replace

import pytest
import torch

from dit_fast.bench import ceilings, memory, model, ops, runner, sample, train
from dit_fast.bench.ceilings import Ceilings
from dit_fast.bench.plain import plain_copy
from dit_fast.bench.recipe import Recipe, kernels_of, parse_model
from dit_fast.bench.schema import Timing
from dit_fast.bench.session import Options, Session, with_ratios
from dit_fast.cli import build_parser, main
from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import OPS, Case, current_backend

TINY = "DiT-S/8:depth=1,hidden_size=64,num_heads=2,num_classes=3"


def session(kind, **options):
    told = {"kinds": (kind,), "models": (TINY,), "dtypes": ("float32",), "batches": (3,), "rounds": 1, **options}
    return Session(Options(**told), Ceilings(copy=10.0, matmul={"float32": 1.0, "bfloat16": 1.0}))


def check(rows, kind):
    """What holds for every timed row; the command that repeats it says the same thing."""
    parser = build_parser()
    for row in rows:
        assert row.kind == kind and row.ms > 0 and row.rounds == 1 and row.ratio_to_eager > 0
        assert row.tflops > 0 and row.share > 0 and row.peak_bytes > 0 and row.memory_method
        words = shlex.split(row.repeat)
        assert words[0] == "dit-fast"
        again = runner.options_of(parser.parse_args(words[1:]))
        assert again.kinds == (kind,) and again.models == (row.name,) and again.dtypes == (row.dtype,)
        assert row.backend in (again.backends if row.ours else again.peers) and again.batches == (row.dims["batch"],)


def test_the_plain_model_is_the_same_model():
    recipe = Recipe(TINY, 3)
    ours = recipe.model(torch.float64)
    plain = plain_copy(ours)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    x, t, y = recipe.inputs()
    with use_backend("reference"), torch.no_grad():
        want = ours(x.double(), t, y)
        assert want.std() > 0.01
        torch.testing.assert_close(plain(x.double(), t, y), want, rtol=1e-6, atol=1e-6)  # features are float32
    assert not plain.pos_embed.requires_grad and plain.pos_embed.data_ptr() != ours.pos_embed.data_ptr()
    with pytest.raises(ValueError, match="`conditioning` must be adaln_zero"):
        plain_copy(Recipe(TINY.replace("num_classes=3", "num_classes=0"), 1).model())


def test_a_model_is_named_with_its_numbers():
    assert parse_model("DiT-S/8:depth=1,hidden_size=64") == ("DiT-S/8", {"depth": 1, "hidden_size": 64})
    for name in ("DiT-M/2", "DiT-S/2:depth=x", "DiT-S/2:depth"):
        with pytest.raises(ValueError, match="`--model` must"):
            parse_model(name)


def test_models_beside_peers():
    told = session("model", peers=("plain", "diffusers"), directions=("forward", "forward+backward"))
    rows = list(model.rows(told))
    check(rows, "model")
    for direction in ("forward", "forward+backward"):
        found = {row.backend: row for row in rows if row.direction == direction}
        assert {"auto", "cpu", "eager", "plain"} <= found.keys() and not told.refused
        assert all(0 < row.error < 1e-5 and row.error_eager == found["eager"].error for row in found.values())
        assert found["plain"].note.startswith("SDPA pinned to ") and found["eager"].ratio_to_eager == 1
    assert rows[0].tflops * rows[0].ms * 1e9 == pytest.approx(Recipe(TINY, 3).flops())


@pytest.mark.parametrize("peer", ["openvino", "onnxruntime"])
def test_runtimes_of_cpus_compute_the_same(peer):
    pytest.importorskip(peer)
    told = session("model", peers=(peer,), backends=("auto",))
    (row,) = [row for row in model.rows(told) if row.backend == peer]
    assert row.error < 1e-5 and row.peak_bytes is None and not row.ours
    half = session("model", peers=("onnxruntime",), backends=("auto",), dtypes=("bfloat16",))
    assert peer == "openvino" or [row.backend for row in model.rows(half)] == ["auto", "eager"]
    assert peer == "openvino" or "do not compute in bfloat16" in half.absent["model: onnxruntime, bfloat16"]


def test_a_wrong_model_is_refused_and_a_failing_peer_is_absent(monkeypatch):
    right = model.own_step
    monkeypatch.setattr(model, "own_step", lambda r, b, t: lambda: right(r, b, t)() * (1.001 if b == "cpu" else 1))
    broken = model.PEERS["plain"]
    monkeypatch.setitem(model.PEERS, "plain", type(broken)(lambda *_: 1 / 0, broken.why_not))
    told = session("model", peers=("plain",))
    assert [row.backend for row in model.rows(told)] == ["auto", "eager"]
    assert told.refused == ["model: cpu, float32"] and "NOT TIMED" in told.absent["model: cpu, float32"]
    assert told.absent["model: plain, float32"].startswith("failed: ZeroDivisionError")


def test_out_of_memory_loses_its_own_rows(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(model, "own_step", full)
    told = session("model")
    assert list(model.rows(told)) == [] and "out of memory" in next(iter(told.absent.values()))


def test_steps_of_training():
    told = session("train", backends=("auto", "auto, torch AdamW"), peers=("plain",), dtypes=("bfloat16",))
    rows = list(train.rows(told))
    check(rows, "train")
    assert [row.backend for row in rows] == ["auto", "auto, torch AdamW", "eager", "plain"] and not told.refused
    assert all(0 < row.error < 0.05 for row in rows) and rows[0].dtype == "bfloat16" and rows[0].direction == "step"
    assert [row.ours for row in rows] == [True, True, False, False]
    assert rows[0].tflops * rows[0].ms * 1e9 == pytest.approx(3 * Recipe(TINY, 3).flops())


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    right = train.gradients
    monkeypatch.setattr(train, "gradients", lambda m, p, b, c: right(m, p, b, c) * (1 if b == "reference" else 1.1))
    told = session("train", backends=("auto",), peers=("none",))
    assert [row.backend for row in train.rows(told)] == ["eager"] and told.refused == ["train: auto, float32"]


def test_the_steps_of_training_are_the_same_step():
    """After three steps the weights of the fused and of PyTorch's optimizer agree, so the same work was timed."""
    ends = []
    for way in (train.OWN["auto"], train.OWN["auto, torch AdamW"], train.PEERS["plain"]):
        step = train.step_of(way, Recipe(TINY, 3), torch.float32)
        first = step()
        step()
        ends.append(torch.cat([first, step()]))
    assert ends[0][3:].lt(ends[0][:3]).all()  # it learns
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-4)


def test_sampling_with_accelerations_off_and_on():
    told = session("sample", peers=("plain",), steps=2)
    rows = list(sample.rows(told))
    check(rows, "sample")
    assert [row.backend for row in rows] == [
        "eager", "plain", "auto", "auto, no modulation cache", "auto, no shared patch embedding", "auto, none of these",
    ]  # fmt: skip
    assert all(row.error < 1e-4 for row in rows) and not told.refused  # one chain, one noise, in float64 and in these
    assert rows[0].images_per_s == pytest.approx(3 / (250 * 1e-3 * rows[0].ms))
    assert "a chain of 2" in rows[0].note


def test_accelerations_are_switched_as_their_names_say(monkeypatch):
    """They change no number, so only what the sampler was told shows it."""
    told = {}
    monkeypatch.setattr(sample, "Sampler", lambda model, **options: told.update(options))
    for name, way in {**sample.own_ways("cuda", ()), **sample.PEERS}.items():
        told.clear()
        if not way.compiled:
            sample.chain_of(way, Recipe(TINY, 1), 2)
            off = {key for key in sample.ACCELERATIONS if told.get(key) is False}
            named = {key for key in sample.ACCELERATIONS if key.replace("_", " ") in name}
            assert off == (named if name.startswith("auto") and "none" not in name else {*sample.ACCELERATIONS})


def test_a_chain_is_told_by_its_step(monkeypatch):
    told = session("sample", peers=("none",), steps=4, backends=("auto",))
    monkeypatch.setattr(told, "time", lambda chains, *rest: {name: Timing(100.0, 0.1, 1) for name in chains})
    assert [row.ms for row in sample.rows(told)] == [25.0, 25.0]


def test_a_wrong_sampler_is_not_timed(monkeypatch):
    right = sample.chain_of

    def wrong(way, *rest):
        chain = right(way, *rest)
        return lambda: chain() * (1.01 if way == sample.Way("auto") else 1)

    monkeypatch.setattr(sample, "chain_of", wrong)
    told = session("sample", peers=("none",), steps=2, backends=("auto", "auto, none of these"))
    assert [row.backend for row in sample.rows(told)] == ["eager", "auto, none of these"]
    assert told.refused == ["sample: auto, float32"]


def test_memory_is_of_a_process_of_its_own():
    told = session("memory", backends=("auto",), peers=("none",), directions=("forward",), batches=(64,))
    (row,) = memory.rows(told)
    assert row.ms is None and row.peak_bytes > 64 * 16 * 256 * 4 and "process of its own" in row.memory_method


def test_ops_beside_eager_and_a_wrong_kernel(monkeypatch):
    spec, case = specs()["gated_residual"], Case("small", {"N": 2, "T": 7, "D": 72})
    told = session("ops", peers=("none",))
    rows = list(ops.bench(told, spec, case, torch.float32, ["cpu", "reference"], ["liger"]))
    assert [(row.backend, row.direction) for row in rows[:3]] == [
        ("cpu", "forward"), ("reference", "forward"), ("eager", "forward"),
    ]  # fmt: skip
    assert len(rows) == 6 and all(row.gbytes_per_s > 0 and row.error is not None for row in rows)
    assert "failed" in told.absent["ops: gated_residual: liger, float32"]
    pair = OPS["gated_residual"]._backend("cpu")
    wrong = type(pair)(lambda x, y, gate: x + gate[:1, None] * y, pair.backward, pair.why_not)
    monkeypatch.setitem(OPS["gated_residual"].backends, "cpu", wrong)
    told = session("ops", peers=("none",))
    assert {row.backend for row in ops.bench(told, spec, case, torch.float32, ["cpu"], [])} == {"eager"}
    assert told.refused == ["ops: gated_residual: cpu, float32"]


def test_an_op_is_repeated_with_the_batch_it_was_asked_for(monkeypatch):
    """Attention's second case has an eighth of the images."""
    seen = []
    monkeypatch.setattr(ops, "bench", lambda told, spec, case, *rest: seen.append((case, told.command(
        {"kind": "ops", "name": "attention", "dims": case.dims, "dtype": "float32", "direction": "forward",
         "backend": "cpu", "ours": True}))) or ())  # fmt: skip
    list(ops.rows(session("ops", ops=("attention",), batches=(16,))))
    assert {case.dims["N"] for case, _ in seen} == {16, 2}
    assert all("--batch 16 " in command for _, command in seen)


def test_absent_libraries_are_listed_with_their_reason():
    told = session("ops")
    assert ops.libraries(told, specs()["adaln"], torch.float32) == ["eager", "compile"]
    assert told.absent.keys() == {"ops: adaln: liger", "ops: adaln: quack"}
    assert all("not installed" in why or "needs a GPU" in why for why in told.absent.values())


def test_ratios_are_to_eager_of_the_same_set():
    told = session("model", peers=("plain",))
    rows = list(model.rows(told))
    (eager,) = [row for row in rows if row.backend == "eager"]
    assert all(row.ratio_to_eager == pytest.approx(eager.ms / row.ms) for row in rows)
    (alone,) = with_ratios([replace(rows[0], ratio_to_eager=None)])
    assert rows[0].backend != "eager" and alone.ratio_to_eager is None


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(ceilings, "measure", lambda device, dtypes: Ceilings(10.0, {"float32": 1.0}))
    monkeypatch.setattr(runner, "refuse_if_busy", lambda *_: {"others_cores": 0.0})


def test_the_command(tmp_path, capsys, quiet):
    file = tmp_path / "r.json"
    command = ["bench", "model", "--model", TINY, "--dtype", "float32", "--rounds", "1", "--peer", "none"]
    assert main([*command, "--json", str(file), "--html", str(tmp_path / "r.html")]) == 0
    result = json.loads(file.read_text())
    assert result["schema"] == 1 and [row["backend"] for row in result["rows"]] == ["auto", "cpu", "eager"]
    assert result["ceilings"] == {"copy_gbytes_per_s": 10.0, "matmul_tflops": {"float32": 1.0}}
    assert "instruction set" in result["environment"] and TINY in (tmp_path / "r.html").read_text()
    out = capsys.readouterr().out
    assert "x eager" in out and out.count(TINY) == 3
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    assert main([*command, "--backend", "cuda"]) == 0  # eager alone, and cuda among the absent
    assert "absent: model: cuda, float32: " in capsys.readouterr().out


def test_the_command_says_what_is_wrong(capsys, quiet):
    for words, said in (
        (["nothing"], "KIND must be one of"),
        (["model", "--model", "DiT-S"], "`--model` must be one of"),
        (["--batch", "0"], "`--batch` must be at least 1, got 0"),
        (["--rounds", "0"], "`--rounds` must be at least 1, got 0"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "PyTorch sees no GPU")]),
    ):
        assert main(["bench", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_refusal_fails_the_run(monkeypatch, capsys, quiet):
    right = model.own_step
    monkeypatch.setattr(model, "own_step", lambda *a: lambda: right(*a)() * 1.001)
    assert main(["bench", "model", "--model", TINY, "--dtype", "float32", "--rounds", "1", "--peer", "none"]) == 1
    assert "NOT TIMED, IT IS WRONG" in capsys.readouterr().err


def test_no_case_is_begun_after_the_minutes():
    told = session("model", minutes=0.0)
    told.begun -= 1
    assert list(model.rows(told)) == [] and list(sample.rows(told)) == [] and list(train.rows(told)) == []


def test_a_backend_that_no_op_has_is_not_auto(monkeypatch):
    """As in a build without nvcc."""
    for op in OPS.values():
        monkeypatch.setattr(op, "native", ["cpu"])
    with kernels_of("cuda"):
        assert {current_backend(name) for name in OPS} == {"cuda"}
    with kernels_of("cpu"):
        assert {current_backend(name) for name in OPS} == {"cpu"}
