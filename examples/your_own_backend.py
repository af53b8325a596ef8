# SPDX-License-Identifier: Apache-2.0
"""A kernel of your own as a backend of an op: registered, held to the op's parity, and timed beside the others."""

import torch
from torch import Tensor

from dit_fast import ops
from dit_fast.bench.ceilings import Ceilings
from dit_fast.bench.ops import bench
from dit_fast.bench.session import Options, Session
from dit_fast.ops._core import OPS, Case
from dit_fast.parity import check_case


def forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y, for x, y (N, T, D), gate (N, D). Yours would launch a kernel."""
    return torch.addcmul(x.float(), gate[:, None].float(), y.float()).to(x.dtype)


def backward(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """dy and dgate; the sum over the tokens in float32."""
    return dout * gate[:, None], (dout.float() * y.float()).sum(1).to(gate.dtype)


OPS["gated_residual"].register_backend(
    "mine", forward, backward, why_not=lambda tensors: None if tensors[0].dim() == 3 else "only for (N, T, D)"
)

spec = ops.specs()["gated_residual"]
for dtype in (torch.float32, torch.bfloat16):
    rows = [row for case in spec.cases for row in check_case(spec, "mine", dtype, case)]
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    worst = max(rows, key=lambda row: row.ratio)
    print(f"parity in {dtype}: {len(rows)} tensors, worst {worst.ratio:.0%} of what is allowed")

session = Session(Options(device="cpu", rounds=5), Ceilings(copy=1.0))
for row in bench(session, spec, Case("small", {"N": 4, "T": 64, "D": 384}), torch.float32, ["mine", "cpu"], ()):
    print(f"{row.direction:9s}{row.backend:7s}{row.ms:7.3f} ms, {row.ratio_to_eager:.2f} times as fast as eager")

with ops.use_backend("mine"):  # and this is how a model uses it
    x = torch.randn(2, 16, 384)
    assert torch.allclose(ops.gated_residual(x, x, x[:, 0]), x + x[:, :1] * x, atol=1e-5)
