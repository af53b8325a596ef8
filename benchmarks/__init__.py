# SPDX-License-Identifier: Apache-2.0
"""Timings beside real alternatives. `python -m benchmarks` times every op, from its spec."""
