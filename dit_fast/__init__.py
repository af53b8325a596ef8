# SPDX-License-Identifier: Apache-2.0
"""dit_fast: the fast, exact, freely licensed Diffusion Transformer for PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .integrations import patch, unpatch

__version__ = "0.1.0"
__all__ = ["patch", "unpatch"]


def __getattr__(name: str) -> Any:
    """`dit_fast.patch` and `dit_fast.unpatch`, without loading torch and the kernels before they are asked for."""
    if name in __all__:
        from dit_fast import integrations

        return getattr(integrations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
