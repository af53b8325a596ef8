# SPDX-License-Identifier: Apache-2.0
"""The pipeline of examples/ gives the same images with its transformer patched (test_examples.py: two lines differ)."""

import re

import pytest

from .test_examples import output


def test_the_images_are_the_same():
    before, after = (
        [[float(v) for v in re.findall(r"\d+\.\d+", line)] for line in output(name).splitlines() if "image (" in line]
        for name in ("diffusers_before", "diffusers_after")
    )
    assert len(before) == 2 and before[0] != before[1]
    assert after == [pytest.approx(values, abs=2e-4) for values in before]
    assert "BasicTransformerBlock  replaced  adaln, gated_residual_adaln, gated_residual" in output("diffusers_after")
