# SPDX-License-Identifier: Apache-2.0
"""An op: one torch operator with a backward twin, one gradient formula, several backends.

`Op` declares `dit_fast::<name>` and `dit_fast::<name>_backward`. Both take a last argument `backend`, so that the
choice is a constant in a compiled graph and the backward runs on the backend of its forward. A backend is a pair
`forward`, `backward` with the same arguments (less `backend`) and the same saved tensors:

- `cpu` and `cuda` are the kernels of the native library, `dit_fast_native::<name>` and `..._backward`;
- `triton` is the module `dit_fast.ops.<name>.triton_kernel`;
- an op without a C++ kernel may name a module of its own for `cpu` (`cpu_module`);
- more can be added with `Op.register_backend`;
- an op may name functions of other libraries (`libraries`), which its public function calls;
- `reference` is the plain function itself: like the libraries' it does not pass through the operator, PyTorch
  differentiates it.

Kernels receive contiguous tensors, but for the arguments named in `strided`, which keep any strides with a last
one of 1 (chunk views of one modulation tensor, unbound views of one qkv tensor). Addresses may be misaligned.

An op that has no gradient (an optimizer's step) is declared without a backward. An argument marked as written in the
schema, `Tensor(a!)` or `Tensor(a!)[]`, is changed in place; one that is not contiguous is copied there and back.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dit_fast import env

from . import flops as flop_formulas
from . import native, triton_interpreter
from .backends import BACKENDS, PREFERENCE, BackendUnavailable, add_name, add_op, announce, current_backend
from .direct import why_not_direct
from .triton_support import triton_why_not

LIBRARY = torch.library.Library("dit_fast", "DEF")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

OLDEST_GPU = (8, 0)
"""Compute capability that the CUDA kernels are built for, or newer."""

OPS: dict[str, "Op"] = {}

Limits = Callable[[str, Sequence[Tensor]], str | None]
WhyNot = Callable[[Sequence[Tensor]], str | None]


_capability: dict[int | None, tuple[int, int]] = {}


@torch.compiler.assume_constant_result
def too_old(index: int | None) -> str | None:
    """Why the CUDA kernels cannot run on this GPU."""
    if index not in _capability:
        _capability[index] = torch.cuda.get_device_capability(index)
    found = _capability[index]
    return None if found >= OLDEST_GPU else f"the kernels need compute capability {OLDEST_GPU}, this GPU has {found}"


class Backend:
    """A pair of kernels and the answer to "why can this not run on these tensors?"."""

    def __init__(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any] | None,
        why_not: WhyNot,
    ) -> None:
        self.forward = forward
        self.backward = backward
        self.why_not = why_not


class Op:
    """See the module.

    `limits(backend, tensors)` gives an op's own reasons against a backend (a head dim, say); `preference(tensors)` the
    order in which `auto` tries backends, where it is not the device's; `libraries` why a library's function cannot run.
    `about` says in a few words what a backend is made of, where that is not this op's own kernels in the backend's
    language; "" where there is none. `flops` has a formula (`ops/_core/flops.py`) for the operator and one for its
    backward.
    """

    def __init__(
        self,
        name: str,
        *,
        forward: str,
        fake: Callable[..., Any],
        backward: str | None = None,
        fake_backward: Callable[..., Any] | None = None,
        save: Callable[..., None] | None = None,
        gradient: Callable[..., Any] | None = None,
        strided: tuple[str, ...] = (),
        limits: Limits | None = None,
        cpu_module: str | None = None,
        about: Mapping[str, str] | None = None,
        preference: Callable[[Sequence[Tensor]], tuple[str, ...]] | None = None,
        libraries: Mapping[str, WhyNot] | None = None,
        flops: tuple[flop_formulas.Formula, ...] = (),
    ) -> None:
        self.name = name
        self.preference = preference
        self.libraries = dict(libraries or {})
        add_op(name)
        for library in self.libraries:
            add_name(library)
        self.strided = strided
        self.limits = limits
        self.cpu_module = cpu_module
        self.about = dict(about or {})
        self.backends: dict[str, Backend] = {}
        self.native = [device for device in ("cpu", "cuda") if native.has_kernel(name, device)]
        self.forward, self._run = self._define(name, forward, fake, "forward")
        self.backward: Any = None
        if backward is not None:
            assert fake_backward is not None and save is not None and gradient is not None
            self.backward, _ = self._define(f"{name}_backward", backward, fake_backward, "backward")
            self._register_gradient(save, gradient)
        for operator, formula in zip((name, f"{name}_backward"), flops, strict=False):
            flop_formulas.register(getattr(torch.ops.dit_fast, operator), formula)
        OPS[name] = self

    def __call__(self, *arguments: Any) -> Any:
        """What `self.forward` gives, without the operator's machinery where that would go unnoticed."""
        if why_not_direct(arguments) is not None:
            return self.forward(*arguments)
        return self._run(*arguments)

    def _register_gradient(self, save: Callable[..., None], gradient: Callable[..., Any]) -> None:
        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)  # no zeros for the saved outputs, or for a result nobody used
            save(ctx, inputs, output)

        torch.library.register_autograd(f"dit_fast::{self.name}", gradient, setup_context=setup, lib=LIBRARY)
        torch.library.register_autograd(f"dit_fast::{self.name}_backward", self._no_double_backward, lib=LIBRARY)

    def _define(self, name: str, schema: str, fake: Callable[..., Any], direction: str) -> tuple[Any, Any]:
        """The operator, and what runs when it is called."""
        LIBRARY.define(name + schema.replace(") ->", ", str backend) ->", 1), tags=torch.Tag.pt2_compliant_tag)
        operator = getattr(torch.ops.dit_fast, name).default
        schema_arguments = operator._schema.arguments[:-1]
        strided = [argument.name in self.strided for argument in schema_arguments]
        written = [i for i, argument in enumerate(schema_arguments) if argument.is_write]

        def run(*arguments: Any) -> Any:
            *given, backend = arguments
            ready = [*map(dense, given, strided)]
            first = next(tensors_in(ready))
            current = torch.cuda.device_of(first) if first.is_cuda else nullcontext()  # where Triton launches
            with current, torch._C._AutoDispatchBelowADInplaceOrView():  # no result is a view to autograd
                result = getattr(self._backend(backend), direction)(*ready)
            for i in written:
                _write_back(given[i], ready[i])
            return result

        def run_fake(*arguments: Any) -> Any:
            return fake(*arguments[:-1])

        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"dit_fast::{name}", run_fake, lib=LIBRARY)
        return operator, run

    def _no_double_backward(self, ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError(
            f"{self.name}: the kernels have no second derivative; use_backend('reference') has"
        )

    def register_backend(
        self,
        name: str,
        forward: Callable[..., Any],
        backward: Callable[..., Any] | None = None,
        why_not: WhyNot = lambda tensors: None,
    ) -> None:
        """Add a kernel pair under `name`; `use_backend(name)` and `dit_fast.parity.check_case` then know it.

        `forward` and `backward` have the arguments and results of `self.forward` and `self.backward` less
        `backend` (no `backward` where the op has none); `why_not(tensors)` says why it cannot run on them, or None.
        """
        if (backward is None) != (self.backward is None):
            expected = "a function" if backward is None else "None, as the op has none"
            raise ValueError(f"register_backend: `backward` of {self.name} must be {expected}, got {backward}")
        if name in ("auto", "reference") or name in self.backends or name in self.libraries:
            raise ValueError(f"register_backend: `name` must be new to {self.name}, got {name!r}")
        add_name(name)
        self.backends[name] = Backend(forward, backward, why_not)

    def names(self) -> list[str]:
        """All backends of this op, whether or not they can run here."""
        return list(dict.fromkeys((*BACKENDS, *self.libraries, *self.backends)))

    def why_not(self, backend: str, tensors: Sequence[Tensor]) -> str | None:
        """Why `backend` cannot run on these tensors; None if it can. The error, skip reason and table cell."""
        if backend == "reference":
            return None
        if backend in self.libraries:
            return self.libraries[backend](tensors)
        if backend not in BACKENDS:  # asked first: a graph that had looked into `backends` would be guarded by it
            if backend in self.backends:
                return self.backends[backend].why_not(tensors)
            return f"{self.name} has no backend {backend!r}"
        if tensors[0].dtype not in KERNEL_DTYPES:
            return f"{tensors[0].dtype} is not among float32, bfloat16, float16"
        reason = self._missing(backend, tensors[0].device)
        if reason is None and self.limits is not None:
            reason = self.limits(backend, tensors)
        return reason

    def _missing(self, backend: str, device: torch.device) -> str | None:
        if backend == "triton":
            return triton_why_not(device.type)
        if device.type != backend:
            return f"tensors are on {device.type}"
        if backend == "cpu" and self.cpu_module is not None:
            return None
        if native.MISSING is not None:
            return native.MISSING
        if backend not in self.native:
            return f"no {backend} kernel of {self.name} in the native library"
        return too_old(device.index) if backend == "cuda" else None

    def select(self, *tensors: Tensor) -> str:
        """The backend to run now on these tensors: the one asked for, or `auto`'s choice."""
        backend = self._select(tensors)
        if backend != "reference" and backend not in self.libraries:
            self._no_forward_mode(tensors)
        return backend

    def _no_forward_mode(self, tensors: Sequence[Tensor]) -> None:
        """Kernels would compute with the values and drop the tangents without a word."""
        if torch.compiler.is_compiling() or forward_ad._current_level < 0:
            return
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            raise NotImplementedError(
                f"{self.name}: the kernels have no forward-mode derivative; use_backend('reference') has"
            )

    def _select(self, tensors: Sequence[Tensor]) -> str:
        asked = current_backend(self.name)
        if asked != "auto":
            reason = self.why_not(asked, tensors)
            if reason is not None:
                raise BackendUnavailable(f"{self.name}: backend {asked!r} cannot run here: {reason}")
            return asked
        passed_over: list[str] = []
        device = tensors[0].device.type
        ordered = self.preference(tensors) if self.preference else PREFERENCE.get(device, ("reference",))
        for name in ordered:
            reason = self.why_not(name, tensors)
            if reason is None:
                if not torch.compiler.is_compiling():
                    announce(self.name, device, name, passed_over)
                return name
            passed_over.append(f"{name} ({reason})")
        raise AssertionError("the reference runs anywhere")

    def _backend(self, name: str) -> Backend:
        if name not in self.backends:
            self.backends[name] = self._load(name)
        return self.backends[name]

    def _load(self, name: str) -> Backend:
        if name == "triton" or (name == "cpu" and self.cpu_module is not None):
            if name == "triton" and env.triton_interpret():
                triton_interpreter.install()
            file = "triton_kernel" if name == "triton" else self.cpu_module
            module = importlib.import_module(f"dit_fast.ops.{self.name}.{file}")
            return Backend(module.forward, getattr(module, "backward", None), lambda tensors: None)
        if name in ("cpu", "cuda"):
            library = torch.ops.dit_fast_native
            return Backend(
                getattr(library, self.name).default,
                getattr(library, f"{self.name}_backward").default if self.backward else None,
                lambda tensors: None,
            )
        raise BackendUnavailable(f"{self.name} has no backend {name!r}")


def dense(argument: Any, strided: bool) -> Any:
    """The argument as kernels take it (see the module); what is no tensor, as it is."""
    if isinstance(argument, Tensor):
        return argument if strided and (argument.stride(-1) == 1 or argument.size(-1) <= 1) else argument.contiguous()
    return [dense(item, strided) for item in argument] if isinstance(argument, list) else argument


def tensors_in(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments and in lists among them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from tensors_in(argument)


def _write_back(given: Any, changed: Any) -> None:
    """Bring what a kernel wrote to where the caller looks for it; autograd learns of it too."""
    for original, dense in zip(tensors_in([given]), tensors_in([changed]), strict=True):
        if dense is not original:
            original.copy_(dense)
        elif not original.is_inference():
            torch.autograd.graph.increment_version(original)
