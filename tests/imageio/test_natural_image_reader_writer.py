"""2D images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import io

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO


def save(pixels: np.ndarray, file: Path) -> str:
    io.imsave(str(file), pixels, check_contrast=False)
    return str(file)


@pytest.mark.parametrize("number_of_channels", [3, 4])
def test_colours_become_channels(number_of_channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 8, number_of_channels)).astype(np.uint8)
    image, properties = NaturalImage2DIO().read_images([save(pixels, tmp_path / "a_0000.png")])
    assert image.shape == (number_of_channels, 1, 7, 8)
    assert np.array_equal(image[:, 0], pixels.transpose(2, 0, 1))
    assert properties == {"spacing": (999, 1, 1)}


def test_a_segmentation_stored_as_grey_colours_is_one_channel(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (7, 8)).astype(np.uint8)
    seg, _ = NaturalImage2DIO().read_seg(save(np.stack([labels] * 3, axis=-1), tmp_path / "a.png"))
    assert np.array_equal(seg, labels[None, None])


def test_a_colour_segmentation_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((7, 8, 3), dtype=np.uint8)
    pixels[2, 2, 0] = 255
    with pytest.raises(RuntimeError, match="a.png.*one channel"):
        NaturalImage2DIO().read_seg(save(pixels, tmp_path / "a.png"))
