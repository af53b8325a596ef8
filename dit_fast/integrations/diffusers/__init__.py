# SPDX-License-Identifier: Apache-2.0
"""What dit_fast does for diffusers. Importing this imports no diffusers; its modules do."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import FastDiTTransformer2DModel

__all__ = ["FastDiTTransformer2DModel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
