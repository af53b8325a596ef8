# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can tell of AdamWEMA: its CUDA kernel beside PyTorch's, streams, a whole step in a CUDA graph."""

import pytest
import torch
from torch import nn

from dit_fast.ops import use_backend
from dit_fast.optim import AdamWEMA
from dit_fast.parity import compare

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here: `make gpu` on one")

SHAPES = [(257, 33), (5,), (1,)] * 40 + [(300, 301)]  # more tensors than one launch takes, more elements than a block
DECAY = 0.9


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to("cuda", dtype)) for s in SHAPES]


def gradients(step):
    generator = torch.Generator("cuda").manual_seed(step)
    return [torch.randn(s, generator=generator, device="cuda") for s in SHAPES]


def result(params, optimizer, averages):
    moments = [optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq") for p in params]
    return [torch.cat([t.detach().flatten() for t in tensors]) for tensors in (params, averages, moments)]


def pytorch(dtype, steps):
    params = parameters(dtype)
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, fused=True)
    for step in range(steps):
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.to(dtype)
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - DECAY)
    return result(params, optimizer, averages)


def ours(params, **options):
    return AdamWEMA(params, lr=1e-2, weight_decay=0.1, ema_decay=DECAY, max_grad_norm=1.0, **options)


def run(optimizer, params, steps):
    for step in steps:
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()
    return result(params, optimizer, optimizer.ema_parameters())


def test_no_further_from_float64_than_pytorch():
    params = parameters()
    with use_backend("cuda"):
        got = run(ours(params), params, range(20))
    for tensors in zip(got, pytorch(torch.float32, 20), pytorch(torch.float64, 20), strict=True):
        assert compare(*tensors, torch.float32)[2] <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_of_a_captured_step_are_steps(dtype):
    """With clipping and a learning rate that a schedule changes between replays."""
    rates = [1e-2, 5e-3, 2e-2]
    with use_backend("cuda"):
        plain = parameters(dtype)
        eager = ours(plain, master_weights=True)
        run(eager, plain, [0])
        for step, rate in enumerate(rates, start=1):
            eager.param_groups[0]["lr"] = torch.tensor(rate, device="cuda")
            wanted = run(eager, plain, [step])

        params = parameters(dtype)
        optimizer = ours(params, master_weights=True)
        run(optimizer, params, [0])
        rate = torch.empty((), device="cuda")
        optimizer.param_groups[0]["lr"] = rate
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            optimizer.step()
        for step, value in enumerate(rates, start=1):
            rate.fill_(value)
            for p, g in zip(params, gradients(step), strict=True):
                p.grad.copy_(g)
            graph.replay()
        torch.cuda.synchronize()
    for a, b in zip(result(params, optimizer, optimizer.ema_parameters()), wanted, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(optimizer.grad_norm, eager.grad_norm)


def test_a_new_parameter_in_a_capture_is_refused():
    param = nn.Parameter(torch.ones(4, device="cuda"))
    param.grad = torch.ones(4, device="cuda")
    optimizer = ours([param])
    with use_backend("cuda"), pytest.raises(RuntimeError, match="take one step before capturing"):  # noqa: SIM117
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


def test_on_a_stream_of_its_own():
    """Gradients that come late on another stream: a kernel on the default stream would read too early."""
    plain, params = parameters(), parameters()
    with use_backend("cuda"):
        wanted = run(ours(plain), plain, [0, 1])
        optimizer = ours(params)
        run(optimizer, params, [0])
        late = gradients(1)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            for p, g in zip(params, late, strict=True):
                p.grad.copy_(g)
            optimizer.step()
        stream.synchronize()
    for a, b in zip(result(params, optimizer, optimizer.ema_parameters()), wanted, strict=True):
        assert torch.equal(a, b)
