# SPDX-License-Identifier: Apache-2.0
"""The paper's U-Nets: the amount of work that it says, and rows beside DiT-XL/2."""

import pytest
import torch

from dit_fast.bench import unets
from dit_fast.bench.ceilings import Ceilings
from dit_fast.bench.recipe import Recipe
from dit_fast.bench.session import Options, Session

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name, within", [("ADM", 0.001), ("LDM-4", 0.012)])
def test_a_unet_does_the_papers_work(name, within):
    assert unets.macs(name) / 1e9 == pytest.approx(unets.UNETS[name].gflops, rel=within)


def test_adm_has_adms_parameters():
    """554 M in its paper (table 4)."""
    assert sum(p.numel() for p in unets.build("ADM", "meta").parameters()) == pytest.approx(554e6, rel=0.001)


@pytest.fixture
def small(monkeypatch):
    """A DiT and a U-Net that a test has time for."""
    narrow = {
        **unets.UNETS["LDM-4"].arguments, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 1,
        "attention_head_dim": 32,
    }  # fmt: skip
    monkeypatch.setattr(unets, "DIT", "DiT-S/8:depth=1")
    monkeypatch.setattr(unets, "UNETS", {"narrow": unets.UNet(0.1, 16, narrow, "narrow")})


def test_rows_stand_beside_each_other(small):
    session = Session(Options(rounds=1, dtypes=("float32",)), Ceilings(10.0, {"float32": 0.1}))
    found = {(row.name, row.backend): row for row in unets.rows(session)}
    assert [*found] == [("DiT-S/8:depth=1", "auto"), ("DiT-S/8:depth=1", "eager"), ("narrow", "diffusers")]
    for row in found.values():
        assert row.ms > 0
        assert row.images_per_s == pytest.approx(1e3 / row.ms)
        assert row.peak_bytes > 0
        assert row.repeat == "dit-fast bench unets --dtype float32 --batch 1 --rounds 1 --device cpu"
    ours, narrow = found["DiT-S/8:depth=1", "auto"], found["narrow", "diffusers"]
    assert ours.tflops * ours.ms * 1e9 == pytest.approx(Recipe("DiT-S/8:depth=1", 1).flops())
    assert narrow.tflops * narrow.ms * 1e9 == pytest.approx(2 * unets.macs("narrow"))
    assert 0 <= ours.error < 1e-4
    assert ours.ours and not narrow.ours


def test_without_diffusers_the_unets_are_absent_with_the_reason(small, monkeypatch):
    def missing(name: str, device: str, dtype: torch.dtype = torch.float32) -> None:
        raise ImportError("the U-Nets need diffusers: pip install dit_fast[diffusers]")

    monkeypatch.setattr(unets, "build", missing)
    session = Session(Options(rounds=1, dtypes=("float32",)), Ceilings(10.0, {"float32": 0.1}))
    assert {row.name for row in unets.rows(session)} == {"DiT-S/8:depth=1"}
    assert "dit_fast[diffusers]" in session.absent["unets: diffusers"]
