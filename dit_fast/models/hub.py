# SPDX-License-Identifier: Apache-2.0
"""Models on the Hugging Face Hub, through huggingface_hub's PyTorchModelHubMixin, loaded when it is asked for.

A repository holds what `DiT.save_pretrained` writes, and a model card.
"""

import re
from pathlib import Path
from typing import Any

from .checkpoint import CONFIG, WEIGHTS, Model, load_as, save_folder
from .dit import DiT


def from_pretrained(kind: type[Model], path: str | Path, device: str = "cpu", **download: Any) -> Model:
    """The model at a local path, which no network is asked about, or of a repository `owner/name`."""
    if Path(path).exists():
        return load_as(kind, path, device)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise FileNotFoundError(f"DiT.from_pretrained: no checkpoint at {path}, and no hub has an `owner/name` like it")
    return hub_class(f"DiT.from_pretrained: {path} is no local path").from_pretrained(
        str(path), kind=kind, map_location=device, **download
    )


def push_to_hub(model: DiT, repo_id: str, **options: Any) -> str:
    """Upload a model; returns the address of the commit."""
    return str(hub_class("DiT.push_to_hub")(model).push_to_hub(repo_id, **options))


def hub_class(asked: str) -> Any:
    """The mixin around a DiT (held, not inherited: DiT needs no huggingface_hub)."""
    try:
        from huggingface_hub import PyTorchModelHubMixin, snapshot_download
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{asked}: the hub needs {missing.name}: pip install 'dit_fast[hub]'") from missing

    class HubDiT(
        PyTorchModelHubMixin, library_name="dit_fast", tags=["dit"], paper_url="https://arxiv.org/abs/2212.09748"
    ):
        def __init__(self, model: DiT) -> None:
            self.model = model

        def _save_pretrained(self, save_directory: Path) -> None:
            save_folder(self.model.state_dict(), self.model.config, save_directory)

        @classmethod
        def _from_pretrained(
            cls, *, model_id: str, revision: Any, cache_dir: Any, force_download: bool, local_files_only: bool,
            token: Any, map_location: str = "cpu", strict: bool = True, **rest: Any,
        ) -> Any:  # fmt: skip
            """The mixin's own would load in float32 and let keys be missing."""
            folder = snapshot_download(
                model_id, revision=revision, cache_dir=cache_dir, force_download=force_download, token=token,
                local_files_only=local_files_only, allow_patterns=[CONFIG, WEIGHTS],
            )  # fmt: skip
            return load_as(rest["kind"], folder, map_location)

    return HubDiT
