# SPDX-License-Identifier: Apache-2.0
"""The 50k protocol: what the file holds, and that neither ranks nor kills nor order change a byte of it."""

import json
import multiprocessing
import os
import socket
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dit_fast.models import DiT
from dit_fast.parity import enliven
from dit_fast.sample import Sampler, to_uint8
from dit_fast.sample.protocol import digest, draw_to_npz, protocol_labels, ranks, sample_to_npz


def draw(numbers: range, labels: Tensor | None) -> Tensor:
    """Image k tells its number and label, and noise from a generator of its own."""
    images = torch.empty(len(numbers), 4, 6, 3, dtype=torch.uint8)
    for i, k in enumerate(numbers):
        images[i] = torch.randint(0, 256, (4, 6, 3), generator=torch.Generator().manual_seed(k))
        images[i, 0, 0, 0] = k
        images[i, 0, 0, 1] = 255 if labels is None else labels[i]
    return images


class Stop(Exception):
    pass


def test_the_file_is_what_the_evaluator_reads(tmp_path):
    labels = protocol_labels(11, 3, "balanced")
    out = draw_to_npz(draw, 11, tmp_path / "deep" / "s", labels=labels, batch_size=4, progress=False)
    assert out == tmp_path / "deep" / "s.npz"
    with np.load(out) as archive:
        assert list(archive) == ["arr_0"]
        images = archive["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (11, 4, 6, 3) and images.flags.c_contiguous
    assert images[:, 0, 0, 0].tolist() == list(range(11))
    assert images[:, 0, 0, 1].tolist() == [0, 1, 2] * 3 + [0, 1]
    assert np.array_equal(images, draw(range(11), labels).numpy())
    assert sorted(p.name for p in out.parent.iterdir()) == ["s.npz", "s.npz.json"]
    with zipfile.ZipFile(out) as archive:  # whole, and not compressed: numpy and ADM's reader stream it
        assert archive.testzip() is None and archive.infolist()[0].compress_type == zipfile.ZIP_STORED


def test_grey_is_repeated_and_no_labels_are_none(tmp_path):
    out = draw_to_npz(lambda n, y: draw(n, y)[..., :1], 3, tmp_path / "g.npz", batch_size=2, progress=False)
    images = np.load(out)["arr_0"]
    assert images.shape == (3, 4, 6, 3) and all(np.array_equal(images[..., c], images[..., 0]) for c in (1, 2))


def test_the_layout_of_what_is_drawn_does_not_matter(tmp_path):
    def turned(numbers: range, labels: Tensor | None) -> Tensor:
        return draw(numbers, labels).permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)

    out = draw_to_npz(turned, 3, tmp_path / "t.npz", batch_size=1, progress=False)
    assert np.array_equal(np.load(out)["arr_0"], draw(range(3), None).numpy())


def test_a_part_that_is_half_written_is_drawn_again(tmp_path, monkeypatch):
    save = np.save

    def half(file: Any, array: np.ndarray) -> None:
        save(file, array[:1])
        raise Stop

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(Stop):
        draw_to_npz(draw, 3, tmp_path / "s.npz", progress=False)
    monkeypatch.undo()
    out = draw_to_npz(draw, 3, tmp_path / "s.npz", progress=False)
    assert np.array_equal(np.load(out)["arr_0"], draw(range(3), None).numpy())


def test_labels_of_the_protocol():
    assert protocol_labels(5, 0) is None
    balanced = protocol_labels(50, 7, "balanced")
    assert torch.bincount(balanced).tolist() == [8, 7, 7, 7, 7, 7, 7]
    drawn = protocol_labels(70_000, 7)
    assert drawn.dtype == torch.int64 and torch.equal(drawn, protocol_labels(70_000, 7))
    assert not torch.equal(drawn, protocol_labels(70_000, 7, seed=1))
    counts = drawn.bincount(minlength=7).double()
    assert len(counts) == 7 and float(((counts - 10_000) ** 2 / 10_000).sum()) < 22.5  # chi squared, 6 degrees, 0.1%
    with pytest.raises(ValueError, match="labels: expected 'random' or 'balanced', got 'sorted'"):
        protocol_labels(5, 2, "sorted")


def test_it_goes_on_where_it_was_and_the_bytes_are_the_same(tmp_path):
    whole = draw_to_npz(draw, 10, tmp_path / "whole.npz", batch_size=3, plan={"seed": 5}, progress=False)
    drawn: list[range] = []

    def stopping(numbers: range, labels: Tensor | None) -> Tensor:
        if len(drawn) == 2:
            raise Stop
        drawn.append(numbers)
        return draw(numbers, labels)

    out = tmp_path / "s.npz"
    with pytest.raises(Stop):
        draw_to_npz(stopping, 10, out, batch_size=3, plan={"seed": 5}, progress=False)
    assert not out.exists() and len(list((tmp_path / "s.npz.parts").iterdir())) == 2
    for half in (tmp_path / "s.npz.parts" / "00000006.npy.7.partial", tmp_path / "s.npz.7.partial"):
        half.write_bytes(b"half")  # as a kill during a write leaves it
    with pytest.raises(ValueError, match=r"out: .*s.npz.json was begun with seed 5, got 6; expected the same"):
        draw_to_npz(draw, 10, out, batch_size=3, plan={"seed": 6}, progress=False)
    drawn.clear()
    draw_to_npz(lambda n, y: drawn.append(n) or draw(n, y), 10, out, batch_size=3, plan={"seed": 5}, progress=False)
    assert drawn == [range(6, 9), range(9, 10)]
    assert out.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.glob("s.npz*")} == {"s.npz", "s.npz.json"}
    drawn.clear()
    (tmp_path / "s.npz.parts").mkdir()  # as a kill before the last line leaves it
    draw_to_npz(lambda n, y: drawn.append(n) or draw(n, y), 10, out, batch_size=3, plan={"seed": 5}, progress=False)
    assert not drawn and not (tmp_path / "s.npz.parts").exists()


def test_another_plan_is_refused_and_nothing_is_touched(tmp_path):
    labels = protocol_labels(6, 2)
    out = draw_to_npz(draw, 6, tmp_path / "s.npz", labels=labels, batch_size=2, progress=False)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="labels_sha256"):
        draw_to_npz(draw, 6, out, labels=1 - labels, batch_size=2, progress=False)
    with pytest.raises(ValueError, match="batch_size 2, got 3; count 6, got 7"):
        draw_to_npz(draw, 7, out, labels=protocol_labels(7, 2), batch_size=3, progress=False)
    out.with_name("s.npz.json").unlink()
    with pytest.raises(ValueError, match=r"s.npz exists, and no s.npz.json beside it"):
        draw_to_npz(draw, 6, out, labels=labels, batch_size=2, progress=False)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, y: draw(n, y).float(), "draw: expected it to return torch.uint8 .3, H, W, 1 or 3., got torch.fl"),
        (lambda n, y: draw(n, y)[:1], r"got torch.uint8 \(1, 4, 6, 3\)"),
        (lambda n, y: draw(n, y).permute(0, 3, 1, 2), r"got torch.uint8 \(3, 3, 4, 6\)"),
    ],
)
def test_a_draw_that_returns_something_else(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw_to_npz(wrong, 3, tmp_path / "s.npz", progress=False)


def test_bad_arguments_are_named(tmp_path):
    for count, batch_size, labels, message in (
        (0, 2, None, "count: expected an int >= 1, got 0"),
        (4, 0, None, "batch_size: expected an int >= 1, got 0"),
        (4, 2, torch.zeros(3, dtype=torch.int64), r"labels: expected torch.int64 \(4,\) on the CPU, got"),
        (4, 2, torch.zeros(4), "got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_to_npz(draw, count, tmp_path / "s.npz", labels=labels, batch_size=batch_size, progress=False)
    assert not list(tmp_path.iterdir())


def small(**options: Any) -> DiT:
    torch.manual_seed(3)
    shape = dict(input_size=4, patch_size=2, hidden_size=32, depth=1, num_heads=1)
    return enliven(DiT(**{**shape, "in_channels": 3, "num_classes": 3, "learn_sigma": False, **options})).eval()


def test_a_sampler_draws_the_same_images_as_by_itself(tmp_path):
    model, labels = small(), protocol_labels(5, 3, "balanced")
    sampler = Sampler(model, method="euler", steps=3, cfg_scale=2.0)
    out = sample_to_npz(sampler, 5, tmp_path / "s.npz", labels=labels, seed=4, batch_size=2, progress=False)
    alone = torch.cat([sampler(labels[k : k + 2], seeds=range(k, min(k + 2, 5)), seed=4) for k in (0, 2, 4)])
    assert np.array_equal(np.load(out)["arr_0"], to_uint8(alone).numpy())
    assert len(np.unique(np.load(out)["arr_0"])) > 10
    plan = json.loads((tmp_path / "s.npz.json").read_text())
    assert plan["weights_sha256"] == digest(model) and plan["seed"] == 4
    with torch.no_grad():
        model.final_layer.linear.bias[0] += 1e-3
    for changed, options in (("weights_sha256", {}), ("seed", {"seed": 5}), ("size", {"size": 8})):
        with pytest.raises(ValueError, match=changed):
            sample_to_npz(sampler, 5, out, **{"labels": labels, "seed": 4, "batch_size": 2, **options})


def test_latents_are_decoded_a_batch_at_a_time_and_models_need_no_labels(tmp_path):
    class Vae(torch.nn.Module):
        """The surface of a diffusers AutoencoderKL: twice the size, three of four channels."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.config = SimpleNamespace(latent_channels=4, scaling_factor=0.5)

        def decode(self, z: Tensor) -> SimpleNamespace:
            assert len(z) <= 2
            return SimpleNamespace(sample=torch.nn.functional.interpolate(z[:, :3], scale_factor=2) * self.weight)

    sampler, vae = Sampler(small(in_channels=4, num_classes=0), method="euler", steps=2), Vae()
    out = sample_to_npz(
        sampler, 3, tmp_path / "s.npz", labels=None, size=(4, 8), vae=vae, scale=0.25, batch_size=2, progress=False
    )
    alone = torch.cat([sampler(len(n), seeds=n, size=(4, 8)) for n in (range(2), range(2, 3))])
    expected = to_uint8(torch.nn.functional.interpolate(alone[:, :3] / 0.25, scale_factor=2))
    assert np.array_equal(np.load(out)["arr_0"], expected.numpy()) and expected.shape == (3, 8, 16, 3)
    with pytest.raises(ValueError, match="scale 0.25, got null"):
        sample_to_npz(sampler, 3, out, labels=None, size=(4, 8), vae=vae, batch_size=2)
    vae.weight.data += 1
    with pytest.raises(ValueError, match="was begun with vae_sha256"):
        sample_to_npz(sampler, 3, out, labels=None, size=(4, 8), vae=vae, scale=0.25, batch_size=2)


def test_the_digest_is_of_names_numbers_and_dtypes():
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert digest(layers[0]) == digest(layers[1]) != digest(layers[2])
    with torch.no_grad():
        layers[1].bias[1] = torch.nextafter(layers[1].bias[1], torch.tensor(9.0))
    assert digest(layers[0]) != digest(layers[1])
    assert digest(torch.nn.Linear(2, 2).bfloat16()) and digest(lambda x, t: x) is None


def rank_of_two(rank: int, port: int, out: Path, seconds: float) -> None:
    """What `torchrun` starts: it knows its place by the environment alone."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")  # fmt: skip

    def slow(numbers: range, labels: Tensor | None) -> Tensor:
        with open(f"{out}.drawn", "a") as log:
            log.write(f"{dist.get_rank()} {numbers.start}\n")
        time.sleep(seconds)
        return draw(numbers, labels)

    with ranks("cpu") as device:
        assert device == "cpu" and dist.get_world_size() == 2
        draw_to_npz(slow, 11, out, labels=protocol_labels(11, 3), batch_size=2, progress=False)
        assert out.exists()


def start_two(out: Path, seconds: tuple[float, float]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # no time for imports; the children use no thread of the parent's
    processes = [context.Process(target=rank_of_two, args=(r, port, out, seconds[r]), daemon=True) for r in (0, 1)]
    for process in processes:
        process.start()
    return processes


def test_two_ranks_killed_and_resumed_write_the_file_of_one(tmp_path):
    one = draw_to_npz(draw, 11, tmp_path / "one.npz", labels=protocol_labels(11, 3), batch_size=2, progress=False)
    out, parts, log = tmp_path / "two.npz", tmp_path / "two.npz.parts", tmp_path / "two.npz.drawn"
    first = start_two(out, (0.5, 0.5))
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npy"))) < 2:
        assert time.monotonic() < deadline and all(process.is_alive() for process in first)
        time.sleep(0.02)
    for process in first:
        process.kill()
        process.join()
    kept = {int(p.stem) for p in parts.glob("*.npy")}
    assert not out.exists() and 2 <= len(kept) < 6
    log.unlink()
    for process in start_two(out, (0, 0.3)):
        process.join(60)
        assert process.exitcode == 0
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert sorted(start for _, start in lines) == sorted({0, 2, 4, 6, 8, 10} - kept)
    assert all(start // 2 % 2 == rank for rank, start in lines)  # each rank its own share
    assert out.read_bytes() == one.read_bytes()
    assert json.loads((tmp_path / "two.npz.json").read_text())["count"] == 11
