"""Tissue detection against a brightness threshold, another implementation and hand numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.slides import ArraySlide, open_slide
from napari_sparseseg.tissue import TissueMask, detect_tissue, otsu


def test_real_tissue_is_found_and_glass_is_not(cmu_svs):
    with open_slide(cmu_svs) as slide:
        found = detect_tissue(slide, margin_px=0)
        image, _ = slide.thumbnail(2048)
    dark = ndimage.gaussian_filter(image.mean(axis=-1), 1.5) < 215
    overlap = (found.mask & dark).sum() / (found.mask | dark).sum()
    assert overlap > 0.85
    assert 0.2 < found.share < 0.6


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
    assert mask[110:190, 210:290].all()
    assert mask.mean() == pytest.approx(1 / 16, rel=0.1)


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
