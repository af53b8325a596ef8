# SPDX-License-Identifier: Apache-2.0
"""AdamWEMA against PyTorch's clip_grad_norm_, AdamW and AveragedModel, step by step; what it averages and when."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dit_fast.ops import use_backend
from dit_fast.optim import AdamWEMA
from dit_fast.parity import compare

KERNELS = ("cpu", "triton")
DECAY = 0.95


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 1), nn.BatchNorm1d(1)).to(dtype)


def groups(net, named=False):
    """Matrices decay, vectors do not."""
    pairs = list(net.named_parameters())
    pick = [[(n, p) if named else p for n, p in pairs if (p.dim() > 1) == matrix] for matrix in (True, False)]
    return [{"params": pick[0], "weight_decay": 0.1}, {"params": pick[1], "weight_decay": 0.0, "lr": 3e-2}]


def give_gradients(net, step):
    """The same gradients in every dtype; the first layer rests from step 40 on, the last starts at step 20, and the
    first bias misses every third step."""
    generator = torch.Generator().manual_seed(step)
    net[0].weight.requires_grad_(step < 40)
    net[3].weight.requires_grad_(step >= 20)
    for name, p in net.named_parameters():
        grad = torch.randn(p.shape, generator=generator) * 10 ** (step % 3 - 1)
        p.grad = grad.to(p.dtype) if p.requires_grad and not (name == "0.bias" and step % 3 == 0) else None


def factor(step):
    return min(1.0, (step + 1) / 10) * 0.99**step


class PyTorch:
    """The same in PyTorch's own parts."""

    def __init__(self, net, clip=1.0, **options):
        self.net, self.clip = net, clip
        self.optimizer = torch.optim.AdamW(groups(net), lr=1e-2, **options)
        self.averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.averaged.n_averaged += 1
        self.schedule = LambdaLR(self.optimizer, factor)
        self.norms = []

    def step(self, number):
        give_gradients(self.net, number)
        if self.clip is not None:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.norms.append(nn.utils.clip_grad_norm_(params, self.clip))
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.net)

    def averages(self):
        named = dict(self.averaged.module.named_parameters())
        names = {id(p): n for n, p in self.net.named_parameters()}
        return [named[names[id(p)]] for group in self.optimizer.param_groups for p in group["params"]]


class Ours:
    def __init__(self, net, clip=1.0, backend="cpu", **options):
        self.net, self.backend = net, backend
        self.optimizer = AdamWEMA(groups(net), lr=1e-2, ema_decay=DECAY, max_grad_norm=clip, **options)
        self.schedule = LambdaLR(self.optimizer, factor)
        self.norms = []

    def step(self, number):
        give_gradients(self.net, number)
        with use_backend(self.backend):
            self.optimizer.step()
        self.norms.append(self.optimizer.grad_norm)
        self.schedule.step()

    def averages(self):
        return self.optimizer.ema_parameters()


def run(trainer, steps):
    for number in steps:
        trainer.step(number)
    return trainer


def result(trainer):
    """Every tensor that training leaves: weights, averages, states."""
    found = {f"weight {n}": p.detach() for n, p in trainer.net.named_parameters()}
    found |= {f"average {i}": a.detach() for i, a in enumerate(trainer.averages())}
    state = trainer.optimizer.state_dict()["state"]
    found |= {f"{k} {i}": s[k] for i, s in state.items() for k in ("step", "exp_avg", "exp_avg_sq")}
    return found


def assert_equal(first, second):
    first, second = result(first), result(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend,clip", [("cpu", None), ("cpu", 1.0), ("triton", 1.0)])
def test_a_hundred_steps_in_float32(backend, clip):
    """With decay, clipping, a schedule, parameters that rest and start: no further from float64 than PyTorch is.

    Compared by kind, all parameters together: roundings of a tensor with one element are luck, not statistics."""
    exact, eager, got = (
        result(run(trainer, range(100)))
        for trainer in (PyTorch(model(torch.float64), clip), PyTorch(model(), clip), Ours(model(), clip, backend))
    )
    assert exact.keys() == got.keys()
    for kind in ("weight", "average", "step", "exp_avg", "exp_avg_sq"):
        names = [name for name in exact if name.split()[0] == kind]
        tensors = [torch.cat([found[name].flatten() for name in names]) for found in (got, eager, exact)]
        assert compare(*tensors[:2], tensors[2].double(), torch.float32)[2] <= 1.0, kind


def test_a_hundred_steps_in_float64():
    exact = run(PyTorch(model(torch.float64)), range(100))
    got = run(Ours(model(torch.float64), backend="auto"), range(100))
    theirs, ours = result(exact), result(got)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(got.norms, exact.norms, rtol=1e-13, atol=0)


def test_on_a_cpu_the_bits_are_those_of_pytorch():
    theirs, ours = run(PyTorch(model(), fused=True), range(30)), run(Ours(model()), range(30))
    assert_equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.norms, theirs.norms, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_two_runs_are_bit_equal(backend):
    first, second = (run(Ours(model(), backend=backend), range(5)) for _ in range(2))
    assert_equal(first, second)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_masters_step_where_low_precision_parameters_cannot(backend):
    """The master goes the way of a float32 parameter with the same gradients; the parameter is its rounding."""
    low = model(torch.bfloat16)
    wide = copy.deepcopy(low).float()
    ours = Ours(low, clip=None, backend=backend, master_weights=True)
    plain = Ours(wide, clip=None, backend=backend)
    bare = Ours(copy.deepcopy(low), clip=None, backend=backend)
    for trainer in (ours, plain, bare):
        for group in trainer.optimizer.param_groups:
            group["initial_lr"] = group["lr"] = 1e-5
        trainer.schedule.base_lrs = [1e-5, 1e-5]
    for step in range(10, 24):
        for trainer in (ours, bare):
            trainer.step(step)
        give_gradients(wide, step)
        for p, q in zip(wide.parameters(), low.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.float()
        with use_backend(backend):
            plain.optimizer.step()
        plain.schedule.step()
    for p, q, r in zip(low.parameters(), wide.parameters(), bare.net.parameters(), strict=True):
        assert torch.equal(ours.optimizer.state[p]["master"], q)
        assert p.dtype == torch.bfloat16 and torch.equal(p, q.to(torch.bfloat16))
        assert "master" not in bare.optimizer.state[r] and bare.optimizer.state[r]["exp_avg"].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(ours.averages(), plain.averages(), strict=True))
    start = model(torch.bfloat16)
    assert torch.equal(bare.net[2].weight, start[2].weight)  # each update is below half a rounding of 1
    assert not torch.equal(ours.optimizer.state[low[2].weight]["master"], start[2].weight.float())


def test_the_average_starts_from_the_weights_and_follows_those_at_rest():
    net = nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    start = net.weight.detach().clone()
    optimizer = AdamWEMA(net.parameters(), lr=0.1, ema_decay=0.5)
    averages = optimizer.ema_parameters()
    assert all(torch.equal(a, p) for a, p in zip(averages, net.parameters(), strict=True))
    net.weight.grad, net.bias.grad = torch.ones(2, 3), torch.ones(2)
    frozen = net.bias.detach().clone()
    optimizer.step()
    assert torch.equal(net.bias, frozen) and net.bias not in optimizer.state
    average, bias = optimizer.ema_parameters()
    torch.testing.assert_close(average, (start + net.weight.detach()) / 2)
    assert bias.data_ptr() == net.bias.data_ptr()
    optimizer.zero_grad()
    assert net.weight.grad is None
    now = net.weight.detach().clone()
    for _ in range(40):
        optimizer.step()
    assert torch.equal(net.weight, now)
    torch.testing.assert_close(optimizer.ema_parameters()[0], now)


def test_averaged_parameters_lends_the_averages_and_gives_the_weights_back():
    ours = run(Ours(model()), range(25))
    weights, buffers = copy.deepcopy(ours.net.state_dict()), dict(ours.net.named_buffers())
    with pytest.raises(KeyError, match="inside"), ours.optimizer.averaged_parameters():
        params = [p for group in ours.optimizer.param_groups for p in group["params"]]
        assert all(torch.equal(p, a) for p, a in zip(params, ours.averages(), strict=True))
        assert not torch.equal(ours.net[0].weight, weights["0.weight"])
        assert all(torch.equal(b, buffers[n]) for n, b in ours.net.named_buffers())
        duplicate = copy.deepcopy(ours.net)
        raise KeyError("inside")
    for name, value in ours.net.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert torch.equal(duplicate[0].weight, ours.averages()[0])
    assert duplicate[0].weight.requires_grad == ours.net[0].weight.requires_grad


def test_without_an_average():
    net = nn.Linear(2, 2)
    optimizer = AdamWEMA([{"params": [net.weight]}, {"params": [net.bias], "ema_decay": None}], ema_decay=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert "ema" in optimizer.state[net.weight] and "ema" not in optimizer.state[net.bias]
    assert torch.equal(optimizer.ema_parameters()[1], net.bias)
    optimizer.param_groups[0]["ema_decay"] = None
    for use in (optimizer.ema_parameters, optimizer.averaged_parameters().__enter__):
        with pytest.raises(RuntimeError, match="no average, `ema_decay` is None in every group"):
            use()


def test_the_norm_is_measured_and_the_gradients_stay():
    net = model()
    optimizer = AdamWEMA(net.parameters(), max_grad_norm=float("inf"))
    assert optimizer.grad_norm is None
    give_gradients(net, 25)
    before = [p.grad.clone() for p in net.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))
    free = model()
    give_gradients(free, 25)
    AdamWEMA(free.parameters()).step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), free.parameters(), strict=True))
    assert torch.equal(optimizer.grad_norm, nn.utils.get_total_norm(before))


def test_a_closure_is_evaluated_with_gradients():
    net = nn.Linear(2, 1)
    optimizer = AdamWEMA(net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (net(torch.ones(1, 2)) - 3).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]


def test_the_learning_rate_may_be_a_tensor_with_a_schedule():
    number, tensor = Ours(model()), Ours(model())
    for group in tensor.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    for trainer in (number, tensor):
        run(trainer, range(12))
    assert isinstance(tensor.optimizer.param_groups[0]["lr"], torch.Tensor)
    for name, value in result(number).items():
        torch.testing.assert_close(result(tensor)[name], value, rtol=1e-5, atol=1e-6)


def test_a_group_may_come_later_and_parameters_may_have_names():
    net = model()
    optimizer = AdamWEMA(groups(net, named=True)[:1], ema_decay=0.9)
    optimizer.add_param_group(groups(net, named=True)[1])
    assert optimizer.param_groups[1]["ema_decay"] == 0.9 and optimizer.param_groups[1]["lr"] == 3e-2
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "3.weight"]
    give_gradients(net, 25)
    optimizer.step()
    assert all(p in optimizer.state for p in net.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_train_on_alike(duplicate):
    first = run(Ours(model()), range(5))
    second = Ours(model())
    second.net, second.optimizer = duplicate((first.net, first.optimizer))
    second.schedule = LambdaLR(second.optimizer, factor, last_epoch=4)
    first.schedule = LambdaLR(first.optimizer, factor, last_epoch=4)
    for trainer in (first, second):
        run(trainer, range(5, 10))
    assert_equal(first, second)
    assert second.optimizer.max_grad_norm == 1.0 and torch.equal(second.norms[-1], first.norms[-1])


def test_nothing_reads_a_value_of_the_device(monkeypatch):
    """So that a step can be captured in a CUDA graph. Fake tensors raise where a value would be read."""
    capturing = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode():
        scalar = torch.empty((), device="cuda")
        params = [torch.empty(3, 5, device="cuda", requires_grad=True) for _ in range(2)]
        late = torch.empty(4, device="cuda", requires_grad=True)
        optimizer = AdamWEMA([*params, late], lr=scalar, max_grad_norm=1.0)
        for p in params:
            p.grad = torch.empty(3, 5, device="cuda")
        for _ in range(2):
            optimizer.step()
        params[0].grad = None  # its average goes on alone
        capturing.append("now")
        optimizer.step()
        late.grad = torch.empty(4, device="cuda")
        with pytest.raises(RuntimeError, match="take one step before capturing a CUDA graph"):
            optimizer.step()
        with pytest.raises(RuntimeError):
            float(scalar)


def test_a_sparse_gradient_is_named_before_anything_changes():
    weight, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    optimizer = AdamWEMA([weight, table.weight])
    (table(torch.tensor([1])).sum() + weight.sum()).backward()
    with pytest.raises(ValueError, match=r"`param_groups\[0\]\['params'\]\[1\].grad` must be dense, got torch.sparse"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(2)) and not optimizer.state


@pytest.mark.parametrize(
    "options,message",
    [
        ({"lr": -1.0}, r"`lr` must be at least 0, got -1.0"),
        ({"lr": torch.zeros(2)}, r"`lr` must be a number or a tensor with one element, got shape \(2,\)"),
        ({"betas": (0.9, 1.0)}, r"`betas` must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1e-8}, r"`eps` must be at least 0, got -1e-08"),
        ({"weight_decay": -1.0}, r"`weight_decay` must be at least 0, got -1.0"),
        ({"ema_decay": 1.01}, r"`ema_decay` must be in \[0, 1\] or None, got 1.01"),
        ({"max_grad_norm": 0.0}, r"`max_grad_norm` must be above 0 or None, got 0.0"),
        ({"params": [{"params": [nn.Parameter(torch.ones(1))], "amsgrad": True}]}, "`amsgrad` must be False, got True"),
        ({"params": [torch.ones(1).mul(1j).requires_grad_()]}, r"`params\[0\]` must be floating point, got torch.com"),
        ({"params": [torch.ones(1, dtype=torch.int32)]}, r"`params\[0\]` must be floating point, got torch.int32"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"AdamWEMA: {message}"):
        AdamWEMA(**{"params": [nn.Parameter(torch.ones(1))], **options})


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = AdamWEMA([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="`eps` must be at least 0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "eps": -1.0})
    assert len(optimizer.param_groups) == 1
