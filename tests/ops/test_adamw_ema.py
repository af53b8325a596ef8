# SPDX-License-Identifier: Apache-2.0
"""What is special to adamw_ema: it writes in place, whatever the memory; PyTorch's own bits; dtypes; errors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_fast.ops import adamw_ema, use_backend
from dit_fast.ops._core import OPS
from dit_fast.ops.adamw_ema import reference, triton_kernel
from dit_fast.parity import compare

KERNELS = ("cpu", "triton")
WRITTEN = ("params", "exp_avgs", "exp_avg_sqs", "emas", "copies")
SHAPES = ((), (0, 3), (1,), (33, 31), (512,), (1025,), (2, 2, 3, 5))


def inputs(shapes=SHAPES, param=torch.float32, grad=torch.float32, copy=None, steps=3.0):
    generator = torch.Generator().manual_seed(0)

    def tensors(dtype, gain=1.0):
        return [(torch.randn(s, generator=generator) * gain).to(dtype) for s in shapes]

    return {
        "params": tensors(param),
        "grads": tensors(grad, 0.1),
        "exp_avgs": tensors(torch.float32, 0.1),
        "exp_avg_sqs": [t.square() for t in tensors(torch.float32, 0.1)],
        "steps": [torch.full((), steps + i) for i in range(len(shapes))],
        "emas": tensors(torch.float32),
        "copies": tensors(copy) if copy else [],
        "lr": 1e-2,
        "weight_decay": 0.1,
        "ema_decay": 0.9,
    }


def cloned(given, **changes):
    """The same arguments in memory of their own."""
    return {k: [t.clone() for t in v] if isinstance(v, list) else v for k, v in {**given, **changes}.items()}


def assert_equal(got, wanted, names=(*WRITTEN, "steps")):
    for name in names:
        for i, (a, b) in enumerate(zip(got[name], wanted[name], strict=True)):
            assert torch.equal(a, b), f"{name}[{i}]"


def test_the_cpu_backend_gives_the_bits_of_pytorch():
    given = inputs()
    params = [p.clone().requires_grad_() for p in given["params"]]
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, fused=True)
    zeros = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    ours = cloned(
        given, exp_avgs=zeros[0], exp_avg_sqs=zeros[1], emas=averages, steps=[torch.tensor(0.0) for _ in params]
    )
    for _ in range(5):
        for p, g in zip(params, given["grads"], strict=True):
            p.grad = g.clone()
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - 0.9)
        with use_backend("cpu"):
            adamw_ema(**ours)
    theirs = {
        "params": params, "emas": averages, "exp_avgs": [optimizer.state[p]["exp_avg"] for p in params],
        "exp_avg_sqs": [optimizer.state[p]["exp_avg_sq"] for p in params],
        "steps": [optimizer.state[p]["step"] for p in params],
    }  # fmt: skip
    assert_equal(ours, theirs, theirs)
    assert not any(torch.equal(a, b) for a, b in zip(averages, given["params"], strict=True) if a.numel())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("backend", KERNELS)
def test_every_shape_beside_the_reference(backend, clip):
    given = inputs()
    given["clip"] = None if clip is None else torch.tensor(clip)
    exact = {k: [t.double() for t in v] if isinstance(v, list) else v for k, v in cloned(given).items()}
    eager, got = cloned(given), cloned(given)
    reference(**{**exact, "clip": None if clip is None else given["clip"].double()})
    reference(**eager)
    with use_backend(backend):
        adamw_ema(**got)
    for name in WRITTEN:
        for tensors in zip(got[name], eager[name], exact[name], strict=True):
            assert compare(*tensors, torch.float32)[2] <= 1.0, name
    assert [float(s) for s in got["steps"]] == [4 + i for i in range(len(SHAPES))]
    assert_equal(got, given, ("grads",))


@pytest.mark.parametrize("layout", ["aligned", "misaligned", "strided"])
@pytest.mark.parametrize("backend", KERNELS)
def test_memory_around_and_between_is_left_alone(backend, layout):
    """The same bits as contiguous memory gives, and nothing written outside the views."""
    given = inputs(((7, 5), (31,), (3, 4, 2)))
    plain = cloned(given)
    with use_backend(backend):
        adamw_ema(**plain)
    rooms = []

    def view(tensor):
        """Amid other numbers, which must stay."""
        room = torch.full((2 * tensor.numel() + 32,), 7.0)
        rooms.append(room)
        first = {"aligned": 16, "misaligned": 13, "strided": 16}[layout]
        part = room[first:][: 2 * tensor.numel() : 2] if layout == "strided" else room[first:][: tensor.numel()]
        return part.view(tensor.shape).copy_(tensor)

    views = {k: [view(t) for t in v] if k in WRITTEN or k == "grads" else v for k, v in given.items()}
    masks = [room == 7 for room in rooms]
    with use_backend(backend):
        adamw_ema(**{**views, "steps": [s.clone() for s in given["steps"]]})
    assert_equal(views, plain, WRITTEN)
    assert all((room[mask] == 7).all() and mask.sum() > 32 for room, mask in zip(rooms, masks, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_tensors_that_lie_in_memory_each_its_own_way(backend):
    given = inputs(((6, 10), (2, 4, 3, 5)))
    plain = cloned(given)
    mixed = cloned(given)
    mixed["params"][0] = mixed["params"][0].t().contiguous().t()
    mixed["emas"][1] = mixed["emas"][1].contiguous(memory_format=torch.channels_last)
    mixed["grads"][0] = given["grads"][0][:1].expand(6, 10)
    plain["grads"][0] = mixed["grads"][0].contiguous()
    with use_backend(backend):
        adamw_ema(**plain)
        adamw_ema(**mixed)
    assert_equal(mixed, plain)
    assert mixed["params"][0].stride() == (1, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_low_precision_parameters_are_computed_in_float32_and_rounded_once(backend, dtype):
    given = inputs(param=dtype, grad=dtype)
    wide = cloned(given, params=[p.float() for p in given["params"]], grads=[g.float() for g in given["grads"]])
    mixed = cloned(given, grads=wide["grads"])
    narrow = cloned(given)
    with use_backend(backend):
        for each in (wide, narrow, mixed):
            adamw_ema(**each)
    assert_equal(narrow, mixed)
    assert_equal(narrow, wide, ("exp_avgs", "exp_avg_sqs"))
    for p, q, start, ema in zip(narrow["params"], wide["params"], given["emas"], narrow["emas"], strict=True):
        assert p.dtype == dtype and torch.equal(p, q.to(dtype))
        torch.testing.assert_close(ema, 0.9 * start + 0.1 * p.float())


@pytest.mark.parametrize("grad", ["float32", "copy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_the_copy_is_the_rounded_parameter(backend, dtype, grad):
    given = inputs(copy=dtype, grad=dtype if grad == "copy" else torch.float32)
    plain = cloned(given, copies=[], grads=[g.float() for g in given["grads"]])
    with use_backend(backend):
        adamw_ema(**given)
        adamw_ema(**plain)
    assert_equal(given, plain, ("params", "exp_avgs", "exp_avg_sqs", "emas"))
    assert all(torch.equal(c, p.to(dtype)) for c, p in zip(given["copies"], given["params"], strict=True))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_the_learning_rate_may_be_a_tensor_and_the_average_absent(backend):
    given = inputs()
    number, tensor, alone = (cloned(given, **c) for c in ({}, {"lr": torch.tensor(1e-2)}, {"emas": []}))
    with use_backend(backend):
        for each in (number, tensor, alone):
            adamw_ema(**each)
    for each, names in ((tensor, WRITTEN), (alone, WRITTEN[:3])):
        for name in names:
            for a, b in zip(each[name], number[name], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("step", [0.0, 1e6])
@pytest.mark.parametrize("backend", KERNELS)
def test_bias_correction_early_and_late(backend, step):
    """The first step moves by lr whatever the gradient's size; after very many the correction is gone."""
    given = inputs(((50,),), steps=step)
    given.update(weight_decay=0.0, eps=0.0)
    start = given["params"][0].clone()
    if step == 0:
        for name in ("exp_avgs", "exp_avg_sqs"):
            given[name][0].zero_()
        moved = given["grads"][0].sign()
    else:
        m = 0.9 * given["exp_avgs"][0] + 0.1 * given["grads"][0]
        moved = m / (0.999 * given["exp_avg_sqs"][0] + 0.001 * given["grads"][0].square()).sqrt()
    with use_backend(backend):
        adamw_ema(**given)
    torch.testing.assert_close(given["params"][0], start - 1e-2 * moved)


@pytest.mark.parametrize("backend", KERNELS)
def test_autograd_notices_the_write(backend):
    weight = torch.randn(3, 3, requires_grad=True)
    given = inputs(((3, 3),))
    given["params"] = [weight]
    loss = (weight**2).sum()
    with use_backend(backend):
        adamw_ema(**given)
    assert weight.requires_grad and weight.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_reads_a_value_of_the_device(monkeypatch):
    """So that a step can be captured in a CUDA graph. Fake tensors raise where a value would be read."""
    launched = []

    class Launches:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(grid)

    monkeypatch.setattr(triton_kernel, "_kernel", Launches())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "emas", "copies")
    with FakeTensorMode():
        given = {k: [torch.empty(() if k == "steps" else s, device="cuda") for s in SHAPES] for k in names[:-1]}
        scalar = torch.empty((), device="cuda")
        with pytest.raises(RuntimeError):
            float(scalar)
        adamw_ema(**given, lr=scalar, clip=scalar)  # checks, choice of backend
        lists = [given.get(name, []) for name in names]
        triton_kernel.forward(*lists, scalar, scalar, 0.0, 0.9, 0.999, 1e-8, 0.1, 0.9)
    assert len(launched) == len(SHAPES) - 1  # none for the empty tensor


def test_a_backend_of_ones_own_has_no_backward():
    with pytest.raises(ValueError, match="`backward` of adamw_ema must be None, as the op has none"):
        OPS["adamw_ema"].register_backend("mine", lambda *a: None, lambda *a: None)
    with pytest.raises(ValueError, match="`backward` of adaln must be a function, got None"):
        OPS["adaln"].register_backend("mine", lambda *a: None)


def test_no_parameters_is_no_work():
    adamw_ema([], [], [], [], [], lr=1e-3)


HALF = [torch.zeros(2, dtype=torch.float16)]


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("params", [torch.zeros(2, dtype=torch.int32)], r"`params\[0\]` must be floating point, got torch.int32"),
        ("params", [torch.zeros(2) * 1j], r"`params\[0\]` must be floating point, got torch.complex64"),
        ("params", [torch.zeros(2), torch.zeros(2)], r"`grads` must be 2 tensors, one for each of `params`, got 1"),
        ("grads", [], r"`grads` must be 1 tensors, one for each of `params`, got 0"),
        ("grads", [torch.zeros(3)], r"`grads\[0\]` must be of shape \(2,\), got shape \(3,\)"),
        ("grads", HALF, r"`grads\[0\]` must be torch.float32, got torch.float16"),
        ("grads", [torch.zeros(2).to_sparse()], r"`grads\[0\]` must be dense, got torch.sparse_coo"),
        ("grads", [torch.zeros(2, device="meta")], r"`grads\[0\]` must be on cpu, got meta"),
        ("exp_avgs", HALF, r"`exp_avgs\[0\]` must be torch.float32, got torch.float16"),
        ("emas", [torch.zeros(2)] * 2, r"`emas` must be 1 tensors, one for each of `params`, got 2"),
        ("emas", HALF, r"`emas\[0\]` must be torch.float32, got torch.float16"),
        ("copies", [torch.zeros(2)], r"`copies\[0\]` must be bfloat16 or float16, .* got torch.float32 of"),
        ("steps", [], r"`steps` must be 1 tensors, one for each of `params`, got 0"),
        ("steps", [torch.zeros(2)], r"`steps\[0\]` must be of shape \(\), got shape \(2,\)"),
        ("steps", [torch.zeros((), dtype=torch.int64)], r"`steps\[0\]` must be torch.float32, got torch.int64"),
        ("lr", -1e-3, r"`lr` must be at least 0, got -0.001"),
        ("lr", float("nan"), r"`lr` must be at least 0, got nan"),
        ("lr", torch.zeros(2), r"`lr` must be a number or a tensor with one element, got shape \(2,\)"),
        ("lr", torch.zeros((), device="meta"), r"`lr` must be on the CPU or on cpu, got meta"),
        ("betas", (0.9, 1.0), r"`betas` must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ("eps", -1.0, r"`eps` must be at least 0, got -1.0"),
        ("weight_decay", -0.1, r"`weight_decay` must be at least 0, got -0.1"),
        ("ema_decay", 1.5, r"`ema_decay` must be in \[0, 1\], got 1.5"),
        ("clip", torch.zeros(1), r"`clip` must be of shape \(\), got shape \(1,\)"),
        ("clip", torch.zeros((), dtype=torch.float64), r"`clip` must be torch.float32, got torch.float64"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    given = inputs(((2,),))
    before = cloned(given)
    with pytest.raises(ValueError, match=f"adamw_ema: {message}"):
        adamw_ema(**{**given, argument: value})
    assert_equal(given, before)
