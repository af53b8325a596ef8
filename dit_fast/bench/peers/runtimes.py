# SPDX-License-Identifier: Apache-2.0
"""OpenVINO and ONNX Runtime, what a CPU's user would pick, on the plain model.

Both get the timestep's features from outside, in float32, computed within the timed step: OpenVINO in bfloat16 would
round the timesteps themselves and be ten times as far from float64.
"""

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..plain import PlainDiT, plain_copy, timestep_features
from ..recipe import Recipe
from ..timing import Step


class Core(nn.Module):
    """The plain model from its features on."""

    def __init__(self, model: PlainDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, features: Tensor, y: Tensor) -> Tensor:
        return self.model.core(x, features, y)


def core(recipe: Recipe) -> tuple[Core, tuple[Tensor, Tensor, Tensor]]:
    """The float32 model and (x, t, y); each runtime rounds as it is told."""
    x, t, y = recipe.inputs()
    return Core(plain_copy(recipe.model(torch.float32))).eval(), (x.float(), t, y)


def _why_not(package: str, recipe: Recipe, train: bool) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if recipe.device != "cpu":
        return "compared on CPUs only"
    return "it has no backward" if train else None


def openvino_why_not(recipe: Recipe, train: bool) -> str | None:
    reason = _why_not("openvino", recipe, train)
    if reason is None and recipe.dtype != "float32":
        able = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = {"bfloat16": "BF16", "float16": "FP16"}[recipe.dtype]
        reason = None if wanted in able else f"OpenVINO has no {wanted} on this CPU, only {', '.join(able)}"
    return reason


def openvino_step(recipe: Recipe, train: bool = False) -> Step:
    openvino = importlib.import_module("openvino")
    module, (x, t, y) = core(recipe)
    converted = openvino.convert_model(module, example_input=(x, timestep_features(t), y))
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[recipe.dtype]
    settings = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1,
    }  # fmt: skip
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    del module, converted

    def step() -> Tensor:
        given: list[Any] = [x.numpy(), timestep_features(t).numpy(), y.numpy()]
        return torch.from_numpy(next(iter(request.infer(given).values())))

    step()
    return step


def onnxruntime_why_not(recipe: Recipe, train: bool) -> str | None:
    reason = _why_not("onnxruntime", recipe, train) or _why_not("onnxscript", recipe, train)
    if reason is None and recipe.dtype != "float32":
        reason = f"ONNX Runtime's CPU kernels do not compute in {recipe.dtype}"
    return reason


def onnxruntime_step(recipe: Recipe, train: bool = False) -> Step:
    onnxruntime = importlib.import_module("onnxruntime")
    module, (x, t, y) = core(recipe)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (x, timestep_features(t), y), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    del module
    names = [i.name for i in session.get_inputs()]

    def step() -> Tensor:
        given = dict(zip(names, (x.numpy(), timestep_features(t).numpy(), y.numpy()), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    step()
    return step
