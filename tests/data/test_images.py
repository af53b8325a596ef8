# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: every kind of file becomes what a viewer shows, cropped as ADM does."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dit_fast.data.images import read_image


def stored(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def levels(file, size, channels=3):
    """The image in 0..255, (C, H, W)."""
    image = read_image(file, "it", size, channels)
    assert image.dtype == torch.float32 and image.shape == (channels, size, size) and image.abs().max() <= 1
    found = ((image + 1) * 127.5).numpy()
    np.testing.assert_allclose(found, found.round(), atol=1e-4)  # float32's rounding
    return found.round()


def test_large_images_are_halved_by_averages_of_boxes():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    means = pixels.reshape(4, 8, 4, 8, 3).astype(float).mean((1, 3)).transpose(2, 0, 1)
    picture = Image.fromarray(pixels)
    # Pillow rounds after each direction of each of three halvings.
    np.testing.assert_allclose(levels(stored(picture), 4), means, atol=6 * 0.5)
    once = np.asarray(picture.resize((4, 4), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(once - means).max() > 6


def test_sizes_below_twice_are_bicubic():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    wanted = np.asarray(picture.resize((4, 4), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(levels(stored(picture), 4), wanted)
    assert not np.array_equal(wanted, np.asarray(picture.resize((4, 4), Image.Resampling.BOX)).transpose(2, 0, 1))


@pytest.mark.parametrize("wide", [False, True])
def test_the_middle_is_kept(wide):
    rows = np.arange(10, dtype=np.uint8)[:, None] * np.ones((1, 4), np.uint8)
    picture = Image.fromarray(rows.T.copy() if wide else rows)
    found = levels(stored(picture), 4, channels=1)[0]
    np.testing.assert_array_equal(found.T if wide else found, rows[3:7])


def test_small_images_are_enlarged_and_the_shape_is_exact():
    for size in ((3, 5), (1, 9), (127, 129), (13, 640)):
        levels(stored(Image.new("RGB", size)), 16)


def test_grey_palette_and_ink():
    grey = Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8))
    for picture in (grey, grey.convert("P"), grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)):
        np.testing.assert_array_equal(levels(stored(picture), 2), [[[0, 100], [200, 255]]] * 3)
    ink = Image.new("CMYK", (2, 2), (255, 0, 0, 0))  # all cyan: no red
    red, green, blue = levels(stored(ink, "TIFF"), 2)
    assert (red < 60).all() and (green > 100).all() and (blue > 100).all()
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(levels(stored(bits), 2, channels=1), [[[255, 0], [0, 255]]])


def test_what_is_transparent_is_white_whatever_colour_it_hides():
    hidden = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    hidden.putpixel((0, 0), (10, 20, 30, 255))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 1)
    for file in (stored(hidden), stored(hidden, "WEBP", lossless=True), stored(palette, transparency=0)):
        found = levels(file, 2)
        assert found[:, 0, 0].tolist() == [10, 20, 30]
        assert (found[:, 0, 1] == 255).all() and (found[:, 1] == 255).all()
    half = levels(stored(Image.new("LA", (2, 2), (0, 128))), 2)
    assert (half == 127).all()


def test_sixteen_bits_keep_their_grey():
    values = np.array([[0, 65535], [32896, 257]], np.uint16)
    np.testing.assert_array_equal(levels(stored(Image.fromarray(values)), 2, 1), [[[0, 255], [128, 1]]])
    np.testing.assert_array_equal(
        levels(stored(Image.fromarray(values.astype(np.int32)), "TIFF"), 2, 1)[0, 0], [0, 255]
    )
    for wrong, told in ((values.astype(np.int32) * 2, "from 0 to 65535, got 0 to 131070"), (values / 2.0, "floating")):
        with pytest.raises(ValueError, match=f"it cannot be read .*{told}"):
            read_image(stored(Image.fromarray(wrong.astype(np.float32 if wrong.dtype == float else np.int32)), "TIFF"),
                       "it", 2)  # fmt: skip


def test_cameras_that_were_turned():
    picture = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    found = levels(stored(picture, exif=exif), 2, 1)[0]
    np.testing.assert_array_equal(found, [[255, 0], [255, 0]])


@pytest.mark.parametrize("harm", ["cut", "text", "empty"])
def test_a_broken_image_is_named(tmp_path, harm):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = stored(Image.fromarray(noise), "JPEG").getvalue()
    file = tmp_path / "broken.jpg"
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[harm])
    with pytest.raises(ValueError, match="broken.jpg cannot be read as an image: "):
        read_image(file, str(file), 16)
