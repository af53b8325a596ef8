# SPDX-License-Identifier: Apache-2.0
"""Barriers, shuffles, static and dynamic shared memory on host_exec, under every order of threads."""

import numpy as np
import pytest

from tests.host_exec.build import load

host_exec = load()


@pytest.fixture(params=["ascending", "descending", "random"])
def order(request):
    host_exec.set_order(request.param, seed=7)
    yield request.param
    host_exec.set_order("ascending")


def test_row_sums(order):
    x = np.random.default_rng(0).integers(-8, 9, (5, 203)).astype(np.float32)
    assert host_exec.order() == order
    np.testing.assert_array_equal(host_exec.row_sums(x), x.sum(1))


def test_too_much_shared_memory_is_an_error():
    host_exec.set_compute_capability(90)
    try:
        host_exec.row_sums(np.zeros((1, 50_000), np.float32))
        host_exec.set_compute_capability(80)
        with pytest.raises(RuntimeError, match="200000 bytes of dynamic shared memory; compute capability 80"):
            host_exec.row_sums(np.zeros((1, 50_000), np.float32))
    finally:
        host_exec.set_compute_capability(80)


def test_unknown_order():
    with pytest.raises(ValueError, match="ascending, descending or random, got sideways"):
        host_exec.set_order("sideways")
