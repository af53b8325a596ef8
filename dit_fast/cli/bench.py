# SPDX-License-Identifier: Apache-2.0
"""Time ops, models, training, sampling and memory beside real alternatives, after checking that they are right.

Every implementation takes its turn in one run. A busy machine is refused; a row says what it was compared with, its
error against float64, its share of what this machine can do, and the command that measures it again.
"""

from dit_fast.bench.runner import add_arguments, run

__all__ = ["add_arguments", "run"]
