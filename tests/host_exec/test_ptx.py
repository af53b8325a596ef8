# SPDX-License-Identifier: Apache-2.0
"""Each function of common/cuda/ptx*.cuh on host_exec against the PTX ISA's text, and against GPUs where recorded."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.host_exec.build import ROOT, load
from tests.host_exec.ptx_semantics import PROBES
from tests.host_exec.record import CASES, GOLDEN, nvcc

host_exec = load()


def test_every_probe_has_its_semantics():
    assert host_exec.probes() == list(PROBES)
    for name, probe in PROBES.items():
        made = probe.make(np.random.default_rng(0), True)
        expected, _ = probe.expect(made)
        assert host_exec.probe_sizes(name) == (made.nbytes, expected.size * probe.result.itemsize), name


def test_every_function_with_ptx_has_a_probe():
    """A function whose name no probe's begins with is one that other probes cannot do without."""
    helpers = {"smem_address", "cp_async_commit", "cp_async_wait", "mbarrier_init", "mbarrier_init_fence"}
    helpers |= {"mbarrier_arrive", "mbarrier_arrive_expect_tx", "mbarrier_wait", "is_half_type"}
    helpers |= {"wgmma_descriptor", "wgmma_descriptor_plain", "wgmma_pin", "wgmma_fence", "wgmma_commit", "wgmma_wait"}
    helpers |= {"wgmma_m64k16", "wgmma_advance", "setmaxnreg_more", "setmaxnreg_fewer"}
    text = "".join((ROOT / "csrc/common/cuda" / name).read_text() for name in ("ptx.cuh", "ptx_sm90.cuh"))
    functions = set(re.findall(r"^DIT_DEVICE \w+ (\w+)\(", text, re.M))
    assert len(functions) > 20
    assert {f for f in functions - helpers if not any(name.startswith(f) for name in PROBES)} == set()


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("name", PROBES)
def test_twin_does_what_the_isa_says(name, order):
    host_exec.set_order(order, seed=3)
    try:
        for exact, seed in CASES:
            made = PROBES[name].make(np.random.default_rng(seed), exact)
            PROBES[name].check(made, host_exec.probe(name, made.tobytes()))
    finally:
        host_exec.set_order("ascending")


@pytest.mark.parametrize("name", PROBES)
def test_the_check_notices_a_changed_bit(name):
    """Of a result's exponent or of an integer: the comparisons above can fail."""
    made = PROBES[name].make(np.random.default_rng(0), True)
    output = bytearray(host_exec.probe(name, made.tobytes()))
    output[3] ^= 0x10
    with pytest.raises(AssertionError):
        PROBES[name].check(made, bytes(output))


def test_twins_do_what_gpus_did():
    """Bit for bit where the result is not rounded, else within the sum of the errors each is allowed."""
    recorded = sorted(GOLDEN.glob("*.npz"))
    if not recorded:
        pytest.skip("no golden vectors have been recorded on a GPU: python -m tests.host_exec.record")
    for path in recorded:
        probe, golden = PROBES[path.stem], np.load(path)
        for (exact, seed), given, by_gpu in zip(CASES, golden["inputs"], golden["outputs"], strict=True):
            made = probe.make(np.random.default_rng(seed), exact)
            assert made.tobytes() == given.tobytes(), f"{path.name}: recorded of another input; record again"
            by_twin = host_exec.probe(path.stem, given.tobytes())
            if not np.issubdtype(probe.result, np.floating):
                assert by_twin == by_gpu.tobytes(), path.name
                continue
            _, allowed = probe.expect(made)
            ours, theirs = (np.frombuffer(x, probe.result).astype(np.float64) for x in (by_twin, by_gpu.tobytes()))
            assert (np.abs(ours - theirs) <= 2 * allowed.ravel()).all(), path.name


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("architecture", ["80", "90a", "100"])
def test_probes_compile(architecture, tmp_path):
    try:
        nvcc([architecture], "-Werror", "all-warnings", "-c", "-o", str(tmp_path / "probes.o"))
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
