# SPDX-License-Identifier: Apache-2.0
"""Runs the kernels with planted bugs; as a script under a sanitizer, `python -m tests.host_exec.planted_bugs address`.

The script prints a line of JSON for each bug: [bug, kernel, what happened]. What happened is "right", "wrong" (the
result), "error" (the launch's) or "report" (the sanitizer's).
"""

import json
import os
import sys
import tempfile

import numpy as np

from tests.host_exec.build import load

ROW_SUMS = (
    "missing_barrier_before_use",
    "missing_barrier_before_reuse",
    "wait_off_by_one",
    "dynamic_shared_overrun",
    "static_shared_overrun",
    "global_read_overrun",
    "global_write_overrun",
    "divergent_shuffle",
    "divergent_barrier",
    "uninitialised_static_shared",
)
GEMM = (
    "wrong_phase",
    "early_release",
    "too_few_bytes_expected",
    "too_many_bytes_expected",
    "missing_empty_wait",
    "accumulator_read_early",
)
RUNS = [("none", "row_sums"), ("none", "gemm")] + [(b, "row_sums") for b in ROW_SUMS] + [(b, "gemm") for b in GEMM]


def outcome(module, bug: str, kernel: str) -> str:
    """Small integers, so that every order of summation is exact; ragged sizes; more stages than the ring has."""
    rng = np.random.default_rng(0)
    try:
        if kernel == "row_sums":
            x = rng.integers(-8, 9, (3, 700)).astype(np.float32)
            result, expected = module.row_sums(x, bug), x.sum(1)
        else:
            a = rng.integers(-4, 5, (72, 200)).astype(np.float32)
            b = rng.integers(-4, 5, (40, 200)).astype(np.float32)
            result, expected = module.gemm(a, b, bug), a @ b.T
    except RuntimeError:
        return "error"
    return "right" if np.array_equal(result, expected) else "wrong"


def in_a_fork(module, bug: str, kernel: str) -> str:
    """AddressSanitizer ends the process at its first finding, so each bug gets one, which has everything loaded."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, outcome(module, bug, kernel).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return said if os.waitstatus_to_exitcode(status) == 0 else "report"


def with_reports(module, bug: str, kernel: str) -> str:
    """ThreadSanitizer goes on after a report, which it writes to standard error."""
    with tempfile.TemporaryFile("w+") as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            happened = outcome(module, bug, kernel)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        log.seek(0)
        return "report" if "WARNING: ThreadSanitizer: data race" in log.read() else happened


def main(sanitizer: str) -> None:
    module = load(sanitizer)
    assert module.sanitizer() == sanitizer
    run = in_a_fork if sanitizer == "address" else with_reports
    for bug, kernel in RUNS:
        print(json.dumps([bug, kernel, run(module, bug, kernel)]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
