# SPDX-License-Identifier: Apache-2.0
"""Samples as pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from dit_fast.sample import save_grid, save_images, to_uint8


def numbered(n, h=2, w=3, c=3):
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, h, w, c)


def test_to_uint8_rounds_and_clamps():
    images = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 7)
    assert to_uint8(images).flatten().tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("channels,mode", [(1, "L"), (3, "RGB")])
def test_a_grid_goes_row_by_row(tmp_path, channels, mode):
    save_grid(numbered(5, c=channels) + 1, tmp_path / "deep" / "g.png", columns=3)
    picture = Image.open(tmp_path / "deep" / "g.png")
    assert picture.mode == mode and picture.size == (9, 4)
    assert np.asarray(picture).reshape(4, 9, -1)[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize("n,columns,rows", [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4)])
def test_a_grid_is_about_square(tmp_path, n, columns, rows):
    save_grid(numbered(n), tmp_path / "g.png")
    assert Image.open(tmp_path / "g.png").size == (3 * columns, 2 * rows)


def test_files_are_numbered_or_named(tmp_path):
    files = save_images(numbered(3, c=1), tmp_path / "all")
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    assert [np.asarray(Image.open(file)).max() for file in files] == [0, 1, 2]
    assert save_images(numbered(1), tmp_path, ["a"])[0] == tmp_path / "a.png"
    with pytest.raises(ValueError, match="`names` must hold one name an image, 3, got 1"):
        save_images(numbered(3), tmp_path, ["a"])


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), numbered(2, c=4), numbered(0), numbered(1)[0]])
def test_other_tensors_are_refused(tmp_path, images):
    for save in (save_grid, save_images):
        with pytest.raises(ValueError, match="`images` must be uint8"):
            save(images, tmp_path / "x")
