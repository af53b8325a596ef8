# SPDX-License-Identifier: Apache-2.0
"""Training on a GPU: a step waits for nothing but its loss, and a run that goes on goes on exactly."""

import pytest
import torch

from dit_fast.ops import use_backend
from dit_fast.train import Trainer
from tests.train.programs import config
from tests.train.source import Tiles

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here: `make gpu` on one")

PRECISIONS = ["float32", "bf16", "pure_bf16"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_reads_nothing_of_the_device_but_its_loss(tmp_path, precision):
    trainer = Trainer(config(tmp_path, precision=precision, accumulate=2), Tiles(), [], device="cuda")
    trainer.model.train()
    x, y = torch.zeros(16, 1, 4, 4, device="cuda"), torch.zeros(16, dtype=torch.int64, device="cuda")
    trainer._step(x, y, False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # the event that the loss is waited for with is none of these
    try:
        loss, stop = trainer._step(x, y, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < loss < 10 and stop


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_goes_on_bit_equal(tmp_path, precision):
    def run(folder, **fields):
        options = {"precision": precision, "save_every": 2, **fields}
        with use_backend(attention="reference"):  # the libraries' backward adds in no fixed order
            return Trainer(config(tmp_path / folder, **options), Tiles(), [], device="cuda").run()

    whole = run("a")
    run("b", steps=2)
    rest = run("b")
    assert rest.losses == whole.losses[2:]
    for a, b in zip(whole.ema.parameters(), rest.ema.parameters(), strict=True):
        assert a.is_cuda and torch.equal(a, b)


def test_it_stops_before_the_update_of_a_loss_that_is_not_a_number(tmp_path):
    trainer = Trainer(config(tmp_path, batch_size=32), Tiles(nan=3), [], device="cuda")
    start = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan; .* not finite: tile 3;"):
        trainer.run()
    for a, b in zip(start, trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
