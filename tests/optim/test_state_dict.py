# SPDX-License-Identifier: Apache-2.0
"""AdamWEMA's state goes to torch.optim.AdamW and an average beside it, comes from there, and survives a file."""

import copy
import io

import pytest
import torch

from dit_fast.optim import AdamWEMA

from .test_adamw_ema import Ours, PyTorch, assert_equal, model, run


def saved(state_dict):
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def moved(source, target):
    """`target` goes on where `source` stopped: weights, optimizer, schedule; the averages are each test's matter."""
    target.net.load_state_dict(source.net.state_dict())
    target.optimizer.load_state_dict(saved(source.optimizer.state_dict()))
    target.schedule.load_state_dict(source.schedule.state_dict())
    return target


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_from_pytorch_and_on(options):
    """Whatever kind of AdamW began, its fused one and ours go on with the same bits."""
    begun = run(PyTorch(model(), **options), range(25))
    ours, theirs = moved(begun, Ours(model())), moved(begun, PyTorch(model()))
    for group in theirs.optimizer.param_groups:
        group.update(fused=True, foreach=False)
    ours.optimizer.load_ema_parameters(begun.averages())
    theirs.averaged.load_state_dict(begun.averaged.state_dict())
    assert_equal(ours, theirs)
    assert_equal(run(ours, range(25, 60)), run(theirs, range(25, 60)))
    assert ours.optimizer.param_groups[0]["ema_decay"] == 0.95 and ours.optimizer.param_groups[0]["fused"]


def test_to_pytorch_and_on():
    ours = run(Ours(model()), range(25))
    theirs = moved(ours, PyTorch(model()))
    for mine, average in zip(theirs.averages(), ours.averages(), strict=True):
        mine.data.copy_(average)
    assert_equal(theirs, ours)
    assert_equal(run(theirs, range(25, 60)), run(ours, range(25, 60)))


def test_to_itself_and_on():
    first = run(Ours(model()), range(25))
    second = moved(first, Ours(model()))
    assert_equal(run(second, range(25, 60)), run(first, range(25, 60)))


def test_masters_and_states_keep_their_precision():
    """The base class would round them to the parameters' dtype."""
    first = run(Ours(model(torch.bfloat16), clip=None, master_weights=True), range(25))
    second = moved(first, Ours(model(torch.bfloat16), clip=None))
    for p, q in zip(first.net.parameters(), second.net.parameters(), strict=True):
        for name, value in first.optimizer.state[p].items():
            assert value.dtype == torch.float32 and torch.equal(second.optimizer.state[q][name], value), name
    assert "master" in first.optimizer.state[first.net[0].weight]
    assert_equal(run(second, range(25, 40)), run(first, range(25, 40)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_made_before_the_first_step_are_those_it_makes(dtype):
    options = {"clip": None, "master_weights": True}
    late, early = Ours(model(dtype), **options), Ours(model(dtype), **options)
    early.net[0].bias.requires_grad_(False)
    early.optimizer.init_states()
    assert early.net[0].bias not in early.optimizer.state
    early.net[0].bias.requires_grad_(True)
    keys = {"step", "exp_avg", "exp_avg_sq", "ema"} | ({"master"} if dtype == torch.bfloat16 else set())
    for p in early.net.parameters():
        state = early.optimizer.state.get(p)
        assert p is early.net[0].bias or (state.keys() == keys and torch.equal(state["ema"], p.float()))
    assert_equal(run(early, range(20, 23)), run(late, range(20, 23)))


def test_what_was_loaded_is_not_shared():
    first = run(Ours(model()), range(21))
    state = first.optimizer.state_dict()
    before = copy.deepcopy(state)
    second = Ours(model())
    second.optimizer.load_state_dict(state)
    run(second, range(21, 25))
    for i, entries in before["state"].items():
        assert all(torch.equal(state["state"][i][name], value) for name, value in entries.items())


def test_groups_keep_their_own_options_where_the_file_has_none():
    net = model()
    params = list(net.parameters())
    options = [{"params": params[:2], "ema_decay": None}, {"params": params[2:], "ema_decay": 0.5}]
    optimizer = AdamWEMA(options, lr=1.0)
    theirs = torch.optim.AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=2e-3)
    optimizer.load_state_dict(theirs.state_dict())
    assert [group["ema_decay"] for group in optimizer.param_groups] == [None, 0.5]
    assert optimizer.param_groups[0]["lr"] == 2e-3
    saved_groups = optimizer.state_dict()
    optimizer.param_groups[1]["ema_decay"] = 0.9
    optimizer.load_state_dict(saved_groups)
    assert optimizer.param_groups[1]["ema_decay"] == 0.5


def test_averages_are_those_given_and_a_frozen_one_needs_no_state():
    net = model()
    net[0].bias.requires_grad_(False)
    optimizer = AdamWEMA(net.parameters(), ema_decay=0.9)
    given = [p.detach() + i for i, p in enumerate(net.parameters(), start=-1)]
    optimizer.load_ema_parameters(given)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.ema_parameters(), given, strict=True))
    assert net[0].bias not in optimizer.state  # its average is itself
    theirs = torch.optim.AdamW(net.parameters())
    theirs.load_state_dict(optimizer.state_dict())
    net(torch.randn(4, 7)).sum().backward()
    theirs.step()
    with pytest.raises(ValueError, match=r"`averages` must be 8 tensors, one for each parameter, got 1"):
        optimizer.load_ema_parameters(given[:1])
    with pytest.raises(ValueError, match=r"`averages\[1\]` must be of shape \(33,\), got shape \(33, 7\)"):
        optimizer.load_ema_parameters([given[0], *given[:-1]])


def broken(change):
    def state_dict():
        net = model()
        theirs = torch.optim.AdamW(net.parameters())
        net(torch.randn(4, 7)).sum().backward()
        theirs.step()
        state = theirs.state_dict()
        change(state)
        return state

    return state_dict


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s["param_groups"][0].update(amsgrad=True), "`amsgrad` must be False, got True"),
        (lambda s: s["param_groups"][0].update(maximize=True), "`maximize` must be False, got True"),
        (lambda s: s["param_groups"][0].update(decoupled_weight_decay=False), "`decoupled_weight_decay` must be True"),
        (lambda s: s["param_groups"][0].pop("betas"), r"param_groups'\]\[0\]` must be AdamW's, got one without betas"),
        (lambda s: s["state"][0].update(exp_avg=torch.zeros(2)), r"'exp_avg'\]` must be of shape \(33, 7\), got shape"),
        (lambda s: s["param_groups"].append({**s["param_groups"][0]}), "different number of parameter groups"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, message):
    ours = Ours(model())
    optimizer = AdamWEMA(ours.net.parameters())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(broken(change)())
    assert not optimizer.state and not optimizer._optimizer_load_state_dict_pre_hooks
    assert optimizer.param_groups[0]["ema_decay"] == 0.9999
