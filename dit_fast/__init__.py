# SPDX-License-Identifier: Apache-2.0
"""dit_fast: the fast, exact, freely licensed Diffusion Transformer for PyTorch."""

__version__ = "0.1.0"
