# SPDX-License-Identifier: Apache-2.0
"""Each architecture of diffusers, patched: the numbers of the unpatched model, by the fused ops, and back."""

import copy

import diffusers
import pytest
import torch

import dit_fast
from dit_fast.integrations.diffusers.recipes import FAMILIES, PARTS

from .diffusers_models import CASES
from .diffusers_parity import OPS, at, counted, double, failures, run

diffusers.logging.set_verbosity_error()


def family(model: str):
    return next(f for f in FAMILIES if model in f.models)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_numbers(name, dtype, monkeypatch):
    case = CASES[name]
    model = at(case.build(), dtype)
    inputs = case.batch(dtype)
    eager, true = run(model, inputs), run(at(model, torch.float64), double(inputs))
    report = dit_fast.patch(model)
    with counted(monkeypatch) as calls:
        got = run(model, inputs)
    assert failures(got, eager, true, dtype) == []
    fused = {op for r in report.replaced for op in r.fused} & set(OPS)
    assert {op for op in OPS if calls[op]} == fused, report
    dit_fast.unpatch(model)
    again = run(model, inputs)
    assert all(torch.equal(again[k], eager[k]) for k in eager)


@pytest.mark.parametrize("name", sorted({*CASES} - {"cogvideox"}))  # its norms have weights; without: _plain
def test_the_table_names_what_is_replaced(name):
    case = CASES[name]
    rows = family(case.model)
    named = {row.name.rsplit(".", 1)[1]: row.ops for row in rows.blocks} | {part: PARTS[part] for part in rows.parts}
    replaced = {r.cls: r.fused for r in dit_fast.patch(case.build()).replaced if r.cls != "HunyuanImagePatchEmbed"}
    assert replaced == named


def test_every_row_is_in_a_model_and_has_a_case():
    assert {m for f in FAMILIES for m in f.models} == {case.model for case in CASES.values()}
    assert {part for f in FAMILIES for part in f.parts} == PARTS.keys()


def test_a_copy_of_a_patched_model_is_patched():
    case = CASES["flux"]
    model = case.build()
    dit_fast.patch(model)
    twin = copy.deepcopy(model)
    ours, theirs = run(model, case.batch()), run(twin, case.batch())
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert len(dit_fast.unpatch(twin).replaced) == len(dit_fast.unpatch(model).replaced) > 0
