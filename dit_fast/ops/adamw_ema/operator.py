# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::adamw_ema`: it writes its arguments and has no gradient.

With g the gradient times `clip`, t a parameter's own step count from 1 and a learning rate of `lr_tensor` where it is
given, else `lr`:

    m = m + (1 - beta1) (g - m),   v = beta2 v + (1 - beta2) g^2
    w = w - lr weight_decay w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ema = ema + (1 - ema_decay) (w - ema),   copy = w

All arithmetic is float32. w is rounded to the parameter's dtype before it enters ema. emas and copies may be empty.
`steps` hold t already: the public function counts before it calls a kernel, so that a kernel of many blocks only reads
it. grads and steps are read only; nothing reads a device's value on the host.
"""

from typing import Any

from .._core import Op


def _fake(*arguments: Any) -> None:
    return None


OP = Op(
    "adamw_ema",
    forward=(
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] steps, "
        "Tensor(d!)[] emas, Tensor(e!)[] copies, Tensor? lr_tensor, Tensor? clip, float lr, float beta1, float beta2, "
        "float eps, float weight_decay, float ema_decay) -> ()"
    ),
    fake=_fake,
    cpu_module="cpu_kernel",
    about={"cpu": "PyTorch's own"},
)
