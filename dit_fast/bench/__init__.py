# SPDX-License-Identifier: Apache-2.0
"""Timings beside real alternatives: what `dit-fast bench` and `dit-fast plan` run."""
