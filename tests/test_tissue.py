"""Tissue detection against a brightness threshold, another implementation and hand numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.tissue import TissueMask, detect_tissue, otsu
from napari_sparseseg.slides import ArraySlide, open_slide


def test_no_real_tissue_is_missed_and_half_of_the_slide_is_glass(cmu_svs):
    """Against colour saturation and darkness at full size, which the detection does not look at."""
    with open_slide(cmu_svs) as slide:
        found, frame = detect_tissue(slide), slide.frame(2.0)
        whole = Box(0, 0, *frame.shape(slide.shape))
        pixels = slide.read_region(whole, frame).astype(np.float32)
    saturation = ndimage.uniform_filter(1 - pixels.min(axis=2) / np.maximum(pixels.max(axis=2), 1), 9)
    grey = ndimage.uniform_filter(pixels.mean(axis=2), 9)
    mask = found.read_region(whole, frame)
    assert mask[saturation > 0.05].all()
    assert mask[grey < np.median(grey[~mask]) - 8].all()
    assert found.share < 0.6


def test_pale_tissue_beside_dark_is_not_taken_for_glass_nor_without_glass():
    rng = np.random.default_rng(0)
    image = np.full((600, 600, 3), 245, np.uint8)
    image[100:500, 100:300], image[100:500, 300:500] = (236, 221, 232), (90, 30, 110)
    image = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
    mask = detect_tissue(ArraySlide(image), margin_px=0).mask
    assert mask[102:498, 102:498].all()
    assert mask.mean() == pytest.approx(4 / 9, rel=0.1)
    assert detect_tissue(ArraySlide(image[100:500, 100:500])).share > 0.99


def test_a_mask_is_the_same_from_its_file_and_reaches_to_the_end_of_the_slide(tmp_path):
    mask = TissueMask(np.array([[False, True]]), Frame((10.0, 9.5)))
    mask.save(tmp_path / "tissue.npz")
    read = TissueMask.load(tmp_path / "tissue.npz")
    assert read.frame == mask.frame
    np.testing.assert_array_equal(read.mask, mask.mask)
    assert read.read_region(Box(0, 18, 1, 3), Frame((1.0, 1.0))).all()  # the mask ends at 19, the slide may at 21


def test_pale_pink_and_dark_grey_are_both_tissue():
    image = np.full((600, 600, 3), 243, np.uint8)
    image[100:200, 100:200] = (243, 200, 225)
    image[300:400, 300:400] = 150
    mask = detect_tissue(ArraySlide(image), margin_px=0).mask
    assert mask[110:190, 110:190].all()
    assert mask[310:390, 310:390].all()
    assert mask.mean() == pytest.approx(2 / 36, rel=0.1)


def test_a_yellowish_lamp_does_not_make_glass_tissue():
    image = np.full((400, 400, 3), (240, 236, 214), np.uint8)
    image[50:150, 50:150] = (190, 110, 160)
    assert detect_tissue(ArraySlide(image), margin_px=0).share == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize("value", [255, 243, 120])
def test_a_slide_of_one_colour_is_kept_whole(value):
    noise = np.random.default_rng(0).integers(-2, 3, (300, 300, 3))
    image = np.clip(value + noise, 0, 255).astype(np.uint8)
    assert detect_tissue(ArraySlide(image)).share == 1


def test_fluorescence_has_a_dark_background():
    image = np.random.default_rng(0).normal(100, 5, (400, 400, 2)).astype(np.uint16)
    image[100:200, 200:300, 1] += 4000
    mask = detect_tissue(ArraySlide(image), margin_px=0).mask
    assert mask[100:200, 200:300].all()
    assert mask.mean() < 0.08  # smoothing makes the bright square a little larger


def test_otsu_equals_scikit_image():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(10, 3, 5000), rng.normal(60, 9, 2000)])
    assert otsu(values) == pytest.approx(threshold_otsu(values), abs=values.max() / 128)


def test_a_mask_is_looked_up_at_pixel_centres():
    mask = TissueMask(np.array([[True, False], [False, False]]), Frame((10.0, 10.0)))
    expected = np.zeros((6, 7), bool)
    expected[1:5, 1:5] = True  # pixels of 2.5 px with centres 1.25, 3.75, 6.25, 8.75 lie in the first cell
    np.testing.assert_array_equal(mask.read_region(Box(-1, -1, 6, 7), Frame((2.5, 2.5))), expected)
    assert mask.overlaps(Box(3, 3, 1, 1), Frame((2.5, 2.5)))
    assert not mask.overlaps(Box(4, 4, 3, 3), Frame((2.5, 2.5)))
    assert not mask.overlaps(Box(40, 40, 3, 3), Frame((2.5, 2.5)))
