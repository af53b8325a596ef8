# SPDX-License-Identifier: Apache-2.0
"""AdamW that also averages the weights, clips the gradient and keeps float32 masters, in one pass (ops.adamw_ema)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dit_fast.ops import adamw_ema

from .checks import LOW_PRECISION, check_group, check_saved, fail

OF_ADAMW = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False,
    "fused": True, "decoupled_weight_decay": True,
}  # fmt: skip
"""What the groups of torch.optim.AdamW hold besides; `fused` keeps `step` on the device when it loads ours."""

OWN = ("ema_decay", "master_weights")
"""What the groups of torch.optim.AdamW lack."""


class AdamWEMA(torch.optim.Optimizer):
    """`torch.optim.AdamW` and an exponential moving average (EMA) of the weights as one optimizer.

    The same numbers as clip_grad_norm_, AdamW and `torch.optim.swa_utils.AveragedModel` with a lerp, one after the
    other, in one pass over the parameters. A step reads no value of a device on the host.

    Args:
        params: parameters, (name, parameter) pairs or groups of either; floating point.
        lr: learning rate; a tensor on the device where a schedule must reach into a captured CUDA graph.
        betas, eps, weight_decay: of AdamW; the decay is decoupled.
        ema_decay: share of an average that stays at each step; None for no average. Averages are float32, start from
            the weights as they are before their first step, and are state["ema"].
        max_grad_norm: the gradients of all groups together are scaled to at most this 2-norm, as
            torch.nn.utils.clip_grad_norm_ does, but left as they are in memory; None for no clipping, infinity to
            measure only. `grad_norm` holds the norm of the last step, a tensor on the device.
        master_weights: for bfloat16 and float16 parameters, keep a float32 master each, state["master"]; it is what
            steps, and the parameter is its rounding. Without one an update below half a rounding is lost. Masters
            are made of the parameters before their first step; weights loaded into the model later do not reach them.

    All but `params` and `max_grad_norm` may differ by group. States are float32 whatever the parameters are (float64
    for float64). Parameters with requires_grad False or without a gradient stay as they are; their averages go on to
    follow them. (The average of a parameter that never stepped is the parameter: it has no state.)

    `state_dict` loads into `torch.optim.AdamW` and its into this; there, or where `ema_decay` was None, the averages
    start anew from the weights unless `load_ema_parameters` gives them. `max_grad_norm` is not in it.

    DTensors, as `fully_shard` makes parameters: states are sharded like them, each rank steps its shards, and the norm
    is that of all shards (a collective: every rank must step).

    To capture `step` in a CUDA graph, take one step before, so that all states exist.

    Raises:
        ValueError: an option is out of range, a parameter not floating point, or a gradient sparse.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        ema_decay: float | None = 0.9999,
        max_grad_norm: float | None = None,
        master_weights: bool = False,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            fail("max_grad_norm", "above 0 or None", max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "ema_decay": ema_decay,
            "master_weights": master_weights,
        }  # fmt: skip
        super().__init__(params, {**options, **OF_ADAMW})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the parameters that have a gradient, and every average; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained, at_rest = self._divide()
        clip = self._clip([p.grad for _, params in trained for p in params if p.grad is not None])
        for group, params in trained:
            self._step(group, params, clip)
        for group, params in at_rest:
            weights = [_local(self._weight(group, param)).to(_state_dtype(param)) for param in params]
            averages = [_local(self.state[param]["ema"]) for param in params]
            torch._foreach_lerp_(averages, weights, 1 - group["ema_decay"])
        return loss

    def init_states(self) -> None:
        """Make the states of all parameters that require a gradient, which else their first steps do: to load into,
        or to save before the first step. Averages and masters are then the parameters as they are now."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    self._state(group, param)

    def _divide(self) -> tuple[list[tuple[dict[str, Any], list[Tensor]]], list[tuple[dict[str, Any], list[Tensor]]]]:
        """(group, parameters) to step, alike in device and dtypes; and those with an average but no gradient."""
        trained: list[tuple[dict[str, Any], list[Tensor]]] = []
        at_rest: list[tuple[dict[str, Any], list[Tensor]]] = []
        for number, group in enumerate(self.param_groups):
            alike = defaultdict(list)
            still = defaultdict(list)
            for i, param in enumerate(group["params"]):
                if param.grad is not None and param.requires_grad:
                    if param.grad.layout != torch.strided:
                        fail(f"param_groups[{number}]['params'][{i}].grad", "dense", param.grad.layout)
                    alike[param.device, param.dtype, param.grad.dtype].append(param)
                elif self._averages(group, param):
                    still[param.device, _state_dtype(param)].append(param)
            trained += [(group, params) for params in alike.values()]
            at_rest += [(group, params) for params in still.values()]
        return trained, at_rest

    def _clip(self, grads: list[Tensor]) -> Tensor | None:
        """The factor that scales the gradients to `max_grad_norm`, on the device."""
        if self.max_grad_norm is None:
            return None
        norm = torch.nn.utils.get_total_norm(grads)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()  # of the shards of all ranks
        self.grad_norm = norm if norm.dtype == torch.float64 else norm.float()
        return (self.max_grad_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)

    def _step(self, group: dict[str, Any], params: list[Tensor], clip: Tensor | None) -> None:
        states = [{name: _local(value) for name, value in self._state(group, param).items()} for param in params]
        weights = [_local(param) for param in params]
        has_master = _has_master(group, params[0])
        has_ema = group["ema_decay"] is not None
        adamw_ema(
            [state["master"] for state in states] if has_master else weights,
            [_local(param.grad) for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            [state["ema"] for state in states] if has_ema else [],
            weights if has_master else [],
            lr=group["lr"], betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
            ema_decay=group["ema_decay"] if has_ema else 1.0,
            clip=None if clip is None else clip.to(states[0]["exp_avg"]),
        )  # fmt: skip

    def _state(self, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
        """The parameter's state, made where it lacks something."""
        state = self.state[param]
        dtype = _state_dtype(param)
        wanted = {"step", "exp_avg", "exp_avg_sq"}
        if _has_master(group, param):
            wanted.add("master")
        if group["ema_decay"] is not None:
            wanted.add("ema")
        missing = wanted - state.keys()
        if missing and param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("AdamWEMA: take one step before capturing a CUDA graph, so that all states exist")
        if "step" in missing:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in missing:
                state[moment] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        if "master" in missing:
            state["master"] = param.detach().to(dtype, copy=True)
        if "ema" in missing:
            state["ema"] = self._weight(group, param).to(dtype, copy=True)
        return state

    def _weight(self, group: dict[str, Any], param: Tensor) -> Tensor:
        """The parameter at its full precision."""
        own = self.state.get(param, {})
        return own["master"] if _has_master(group, param) and "master" in own else param.detach()

    def _averages(self, group: dict[str, Any], param: Tensor) -> bool:
        return group["ema_decay"] is not None and "ema" in self.state.get(param, {})

    def ema_parameters(self) -> list[Tensor]:
        """The averages in the order of the parameters; the parameter itself where it has none or never stepped."""
        self._require_average()
        return [
            self.state[param]["ema"] if self._averages(group, param) else param.detach()
            for group in self.param_groups
            for param in group["params"]
        ]

    @torch.no_grad()
    def load_ema_parameters(self, averages: Iterable[Tensor]) -> None:
        """Take the averages from elsewhere: `AveragedModel(...).parameters()`, another's `ema_parameters()`.

        Args:
            averages: a tensor for each parameter, in their order. Those of groups without an average are not kept.
        """
        self._require_average()
        own = [(group, param) for group in self.param_groups for param in group["params"]]
        given = list(averages)
        if len(given) != len(own):
            fail("averages", f"{len(own)} tensors, one for each parameter", len(given))
        for i, (average, (_, param)) in enumerate(zip(given, own, strict=True)):
            if average.shape != param.shape:
                fail(f"averages[{i}]", f"of shape {tuple(param.shape)}", f"shape {tuple(average.shape)}")
        for average, (group, param) in zip(given, own, strict=True):
            average = average.to(param.device, _state_dtype(param))
            untouched = not self.state.get(param) and torch.equal(average, param.to(average.dtype))  # a frozen one, say
            if group["ema_decay"] is not None and not untouched:
                self._state(group, param)["ema"].copy_(average)

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Within this context the parameters hold their averages: to evaluate, to save, or to copy the model.

        >>> with optimizer.averaged_parameters():
        ...     ema_model = copy.deepcopy(model)

        Buffers are not averaged and stay the model's own. The weights are kept aside (a copy of the model's memory)
        and come back at the end, also after an exception. Not for training steps.
        """
        self._require_average()
        averaged = [p for group in self.param_groups for p in group["params"] if self._averages(group, p)]
        with torch.no_grad():
            kept = [param.detach().clone() for param in averaged]
            for param in averaged:
                param.copy_(self.state[param]["ema"])
        try:
            yield
        finally:
            with torch.no_grad():
                for param, weight in zip(averaged, kept, strict=True):
                    param.copy_(weight)

    def _require_average(self) -> None:
        if all(group["ema_decay"] is None for group in self.param_groups):
            raise RuntimeError("AdamWEMA: there is no average, `ema_decay` is None in every group")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an AdamWEMA or a torch.optim.AdamW; tensors are copied, in full precision.

        Raises:
            ValueError: the groups do not match, or it is of an Adam that this is not (amsgrad, maximize, L2 decay).
        """
        final: list[dict[str, Any]] = []

        def last_hook(_: torch.optim.Optimizer, loading: dict[str, Any]) -> None:
            check_saved(loading, self.param_groups)
            final.append(loading)

        handle = self.register_load_state_dict_pre_hook(last_hook)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [param for group in self.param_groups for param in group["params"]]
        numbers = [number for group in final[0]["param_groups"] for number in group["params"]]
        for param, number in zip(params, numbers, strict=True):  # the base class casts to the parameter's dtype
            for name, value in final[0]["state"].get(number, {}).items():
                dtype = torch.float32 if name == "step" else _state_dtype(param)
                tensor = torch.as_tensor(value).to(param.device, dtype, copy=True)
                self.state[param][name] = tensor.reshape(()) if name == "step" else tensor

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "grad_norm": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")  # None where a pickle is loaded
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            for name in OWN:
                group.setdefault(name, before[i][name] if before else self.defaults[name])
            group.update(OF_ADAMW)


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's part on this rank: steps are elementwise. (Known by its method: importing DTensor takes a second.)"""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _has_master(group: dict[str, Any], param: Tensor) -> bool:
    return group["master_weights"] and param.dtype in LOW_PRECISION


def _state_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32
