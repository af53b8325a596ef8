# SPDX-License-Identifier: Apache-2.0
"""What host_exec and the sanitizers notice, shown on kernels with bugs on request (csrc/host_exec/selftest.cu).

CAUGHT says for each bug which detectors notice it: an order of threads by a wrong result or the launch's error, a
sanitizer by its report. The kernels without a bug are right under all. A gain or a loss in a row is a failure.
"""

import json

import pytest

from tests.host_exec.build import load, run_sanitized, why_not
from tests.host_exec.planted_bugs import GEMM, ROW_SUMS, RUNS, outcome

host_exec = load()

ORDERS = ("ascending", "descending", "random")
SANITIZERS = ("address", "thread")
ORDER, ADDRESS, THREAD = set(ORDERS), {"address"}, {"thread"}

CAUGHT = {
    "none": set(),
    "missing_barrier_before_use": ORDER | THREAD,
    "missing_barrier_before_reuse": ORDER | THREAD,
    "wait_off_by_one": ORDER,
    "dynamic_shared_overrun": ORDER | ADDRESS,
    "static_shared_overrun": ORDER | ADDRESS,
    "global_read_overrun": ORDER | ADDRESS,
    "global_write_overrun": ADDRESS,
    "divergent_shuffle": ORDER,
    "divergent_barrier": ORDER,
    "uninitialised_static_shared": ORDER,
    "wrong_phase": ORDER | THREAD,
    "early_release": ORDER | THREAD,
    "too_few_bytes_expected": ORDER,
    "too_many_bytes_expected": ORDER,
    "missing_empty_wait": ORDER,
    "accumulator_read_early": ORDER,
}


def test_every_bug_is_listed_and_caught():
    assert list(CAUGHT) == host_exec.bugs() == ["none", *ROW_SUMS, *GEMM]
    assert [bug for bug, detectors in CAUGHT.items() if not detectors] == ["none"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("bug", "kernel"), RUNS)
def test_orders(bug, kernel, order):
    host_exec.set_order(order, seed=7)
    try:
        assert host_exec.order() == order
        caught = outcome(host_exec, bug, kernel) != "right"
    finally:
        host_exec.set_order("ascending")
    assert caught == (order in CAUGHT[bug])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers(sanitizer):
    assert (reason := why_not(sanitizer)) is None, reason
    run = run_sanitized(sanitizer, "-m", "tests.host_exec.planted_bugs", sanitizer)
    happened = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(bug, kernel) for bug, kernel, _ in happened] == RUNS, run.stderr[-2000:]
    reported = {bug for bug, _, what in happened if what == "report"}
    assert reported == {bug for bug, detectors in CAUGHT.items() if sanitizer in detectors}


@pytest.mark.parametrize(
    ("bug", "kernel", "message"),
    [
        ("divergent_shuffle", "row_sums", r"lane \d+ of warp \d is at __\w+ \(selftest.cu:\d+\) while other lanes"),
        ("divergent_barrier", "row_sums", r"divergent block: thread \d+ is at __syncthreads \(selftest.cu:\d+\)"),
        ("dynamic_shared_overrun", "row_sums", "a write 0 bytes past the end of dynamic shared memory"),
        ("early_release", "gemm", "its operands changed before it was waited for"),
        (
            "too_many_bytes_expected",
            "gemm",
            r"deadlock in block \(0, 0, 0\): .*threads 0-127 at mbarrier.try_wait \(selftest.cu:\d+\)",
        ),
    ],
)
def test_messages(bug, kernel, message):
    a = [[1.0] * 256] * 3
    with pytest.raises(RuntimeError, match=message):
        host_exec.row_sums(a, bug) if kernel == "row_sums" else host_exec.gemm(a, a, bug)


def test_a_sanitized_process_fails_on_a_report():
    assert (reason := why_not("address")) is None, reason
    script = "from tests.host_exec.build import load; load('address').row_sums([[1.0] * 8], 'global_write_overrun')"
    run = run_sanitized("address", "-c", script)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr


def test_bad_names():
    with pytest.raises(ValueError, match="order: expected ascending, descending or random, got sideways"):
        host_exec.set_order("sideways")
    with pytest.raises(ValueError, match=r"bug: expected one of bugs\(\), got typo"):
        host_exec.row_sums([[1.0] * 4], "typo")
