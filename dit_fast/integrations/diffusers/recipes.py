# SPDX-License-Identifier: Apache-2.0
"""The recipes for diffusers' blocks; `patch` imports this where diffusers has been imported."""
