# SPDX-License-Identifier: Apache-2.0
"""Weights packed for oneDNN: right after every way a weight can change, unseen by whatever holds the weight, gone with
it; and a reason where PyTorch's private operators are not what they were."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_fast import nn as dnn
from dit_fast import ops
from dit_fast.ops._core import native
from dit_fast.ops.linear_gelu import cpu_linear, packed
from dit_fast.optim import AdamWEMA
from dit_fast.parity import compare

X = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))

if packed.missing(torch.float32) is not None:
    pytest.skip(packed.missing(torch.float32), allow_module_level=True)


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Whatever this machine would choose. Counts what is packed."""
    monkeypatch.setattr(cpu_linear, "CHOICE", {cpu_linear._instruction_set(): "onednn"})
    made, original = [], packed.reorder()

    def spy(weight, rows):
        made.append(weight.shape)
        return original(weight, rows)

    monkeypatch.setattr(packed, "reorder", lambda: spy)
    packed._kept.clear()
    yield made
    packed.prepack(True)


class Two(nn.Module):
    """A linear that is packed by `ops.linear`, and one by `ops.linear_gelu`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = dnn.Linear(24, 64), dnn.Linear(64, 24)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(ops.linear_gelu(x, self.first.weight, self.first.bias)) * self.scale


@torch.no_grad()
def right(model, x=X):
    got = model(x)
    with ops.use_backend("reference"):
        wanted = model(x)
        exact = copy.deepcopy(model).double()(x.double())
    return compare(got, wanted, exact, x.dtype)[2] <= 1


def optimizer_step(model, make):
    optimizer = make(model.parameters())
    model(X).square().sum().backward()
    optimizer.step()


def one_element_by_a_fused_step(model):
    """It raises no version."""
    weight = model.second.weight
    weight.grad = torch.zeros_like(weight)
    weight.grad[3, 5] = 1.0
    torch.optim.AdamW([weight], lr=7.0, weight_decay=0.0, fused=True).step()


def through_numpy(model):
    model.first.weight.detach().numpy()[:] *= 2


def moved_one(model):
    values = model.second.weight.detach().clone()
    values[3, 5] += 7
    model.second.weight.data = values


def moved_twice(model):
    """The second time, likely to where it was before."""
    for _ in range(2):
        model.first.weight.data = model.first.weight.data * 2


def another_parameter(model):
    model.first.weight = nn.Parameter(model.first.weight.detach() * 2)


def averaged(model):
    optimizer = AdamWEMA(model.parameters(), lr=0.1, ema_decay=0.5)
    model(X).square().sum().backward()
    optimizer.step()
    assert right(model)
    with optimizer.averaged_parameters():
        assert right(model)


def loaded(assign):
    def load(model):
        state = {k: v * 2 for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return load


def swapped_memory(model):
    """As FSDP: the memory is given back and gathered into again, and no version rises."""
    weight = model.second.weight
    values, storage = weight.detach().clone() * 2, weight.untyped_storage()
    size = storage.size()
    storage.resize_(0)
    storage.resize_(size)
    with torch.autograd._unsafe_preserve_version_counter(weight), torch.no_grad():
        weight.copy_(values)


CHANGES = {
    "nothing": lambda model: None,
    "in place": lambda model: nn.init.normal_(model.first.weight),
    "one element": lambda model: model.second.weight.detach()[3, 5].add_(7.0),
    "a view": lambda model: model.first.weight.detach().view(-1)[::7].mul_(3),
    ".data in place": lambda model: model.first.weight.data.mul_(2),
    ".data replaced": lambda model: setattr(model.second.weight, "data", model.second.weight.data * 2),
    ".data replaced, one element": moved_one,
    ".data replaced twice": moved_twice,
    "another parameter": another_parameter,
    "numpy": through_numpy,
    "torch's AdamW": lambda model: optimizer_step(model, lambda p: torch.optim.AdamW(p, lr=0.1)),
    "torch's fused AdamW": lambda model: optimizer_step(model, lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)),
    "torch's fused AdamW, one element": one_element_by_a_fused_step,
    "our AdamW": lambda model: optimizer_step(model, lambda p: AdamWEMA(p, lr=0.1)),
    "averages swapped in and out": averaged,
    "foreach": lambda model: torch._foreach_mul_([p.detach() for p in model.parameters()], 2.0),
    "load_state_dict": loaded(False),
    "load_state_dict, assigned": loaded(True),
    "to half and back": lambda model: model.half().float(),
    "memory given back": swapped_memory,
    "the bias": lambda model: model.first.bias.data.add_(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_right_after_a_change(onednn, change):
    model = Two()
    assert right(model) and right(model)
    assert onednn == [(64, 24), (24, 64)]
    for _ in range(3):
        change(model)
        assert right(model)


def test_packed_once_while_nothing_changes(onednn):
    model = Two()
    for x in (X, X[:35], X.view(2, 20, 24), X):
        assert right(model, x)
    assert len(onednn) == 2
    assert right(model, X[:2]) and len(onednn) == 4  # another layout for a few rows


def test_other_dtypes(onednn):
    model = Two()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        assert right(model.to(dtype), X.to(dtype)), dtype


def test_training_packs_nothing_and_has_its_gradients(onednn):
    model = Two()
    model(X).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with ops.use_backend("reference"):
        model(X).sum().backward()
    for mine, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad)
    assert onednn == []
    compiled = torch.compile(dnn.Linear(24, 10).eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(X)
    assert onednn == []


def test_weights_of_inference_mode_are_not_packed(onednn):
    with torch.inference_mode():
        model = Two()
        assert "inference mode" in packed.why_not(X, model.first.weight)
        torch.testing.assert_close(model(X), F.linear(
            F.gelu(F.linear(X, model.first.weight, model.first.bias), approximate="tanh"),
            model.second.weight, model.second.bias,
        ))  # fmt: skip
    assert onednn == []


def test_state_copies_and_pickles_know_nothing_of_it(onednn):
    model = Two()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    size = len(pickle.dumps(model))
    assert right(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert len(pickle.dumps(model)) == size
    assert not any(vars(p) for p in model.parameters())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        nn.init.normal_(other.first.weight)
        assert right(other) and right(model)


def test_it_goes_with_its_weight_and_with_the_switch(onednn):
    model = Two()
    assert right(model) and len(packed._kept) == 2
    gone = weakref.ref(model.first.weight)
    another_parameter(model)
    gc.collect()
    assert gone() is None and len(packed._kept) == 1
    ops.prepack(False)
    assert len(packed._kept) == 0
    made = len(onednn)
    assert right(model) and len(onednn) == made and len(packed._kept) == 0
    assert packed.why_not(X, model.first.weight) == "prepack(False) was called"
    ops.prepack(True)
    assert right(model) and len(packed._kept) == 2


def test_two_modules_of_one_weight_share_a_copy(onednn):
    one, other = dnn.Linear(24, 10), dnn.Linear(24, 10)
    other.weight = one.weight
    assert right(one) and right(other) and len(onednn) == 1
    one.weight.data.mul_(2)
    assert right(other) and right(one) and len(onednn) == 2


@pytest.fixture
def asked_anew():
    packed.missing.cache_clear()
    yield
    packed.missing.cache_clear()


def gone():
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def another_schema(x, weight, bias, attribute):
    raise AssertionError("not reached: the arguments do not fit")


def without_gelu(x, weight, bias, attribute, scalars, algorithm):
    return F.linear(x, torch.linspace(-1, 1, 8 * 24).reshape(8, 24).to(x.dtype), bias)


@pytest.mark.parametrize("pointwise,reason", [
    (gone, r"not as known: .*no attribute '_linear_pointwise'"),
    (lambda: another_schema, "not as known: .*positional arguments"),
    (lambda: without_gelu, r"oneDNN's linear \(gelu\) is off by"),
])  # fmt: skip
def test_private_operators_that_changed_are_a_reason(onednn, monkeypatch, asked_anew, pointwise, reason):
    monkeypatch.setattr(packed, "linear_pointwise", pointwise)
    model = Two()
    assert right(model)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(packed.missing(torch.float32))
    assert len(onednn) <= 1  # the trial's own


def test_the_choice_of_this_machine_is_one_that_is_known():
    assert set(cpu_linear.CHOICE.values()) <= {"own", "onednn"}
    assert native.instruction_set() in (None, "avx512", "avx2", "portable")
