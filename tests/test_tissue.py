"""Tissue detection against a brightness threshold, another implementation and hand numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.tissue import TissueMask, detect_tissue, otsu, where_to_predict
from napari_sparseseg.slides import ArraySlide, open_slide
from tests.helpers.data import real_data


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


def on_glass(piece: np.ndarray, mpp: float, side: int = 1600) -> tuple[ArraySlide, np.ndarray]:
    """A slide of noisy glass with a piece in its middle, and where on the thumbnail the piece is."""
    image = np.full((side, side, 3), (243, 241, 242), np.uint8)
    y, x = (side - piece.shape[0]) // 2, (side - piece.shape[1]) // 2
    image[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
    noise = np.random.default_rng(0).integers(-2, 3, image.shape)
    slide = ArraySlide(np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8), mpp=mpp)
    thumbnail, frame = slide.thumbnail(2048)
    scale = frame.downsample[0]
    inside = np.zeros(thumbnail.shape[:2], bool)
    inside[int(y / scale) : int((y + piece.shape[0]) / scale), int(x / scale) : int((x + piece.shape[1]) / scale)] = 1
    return slide, inside


def mosaic(kind: str, columns: int = 4, rows: int = 3) -> np.ndarray:
    """Real crops of one tissue side by side, 0.5 um per px."""
    found = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(real_data("crc7k").glob(f"{kind}__*"))]
    assert len(found) >= rows * columns
    return np.vstack([np.hstack(found[i * columns : (i + 1) * columns]) for i in range(rows)])


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("kind", ["ADI", "MUC"])
def test_fat_and_mucus_are_tissue_in_close_up_and_on_the_thumbnail_of_a_large_slide(kind, step):
    piece = mosaic(kind)
    h, w = (n // step for n in piece.shape[:2])
    small = piece[: h * step, : w * step].reshape(h, step, w, step, 3).mean((1, 3)).astype(np.uint8)
    slide, inside = on_glass(small, 0.5 * step, 1600 if step == 1 else 400)
    found = detect_tissue(slide).mask
    assert found[inside].mean() > 0.998
    assert (found & ~inside).mean() < 0.1


def test_a_lumen_is_tissue_and_was_glass_before():
    """A field of real bone with marrow spaces, one as large as a vessel, and a gap in its wall."""
    field = real_data("osteosarcoma/Viable__Case-48-P5-C22-41496-16304_117.jpg")
    piece = np.asarray(Image.open(field).convert("RGB")).copy()[200:1000, 300:1000]
    yy, xx = np.ogrid[:800, :700]
    piece[np.hypot(yy - 400, xx - 300) < 150] = (243, 241, 242)
    piece[380:420, 300:] = (243, 241, 242)  # 40 um wide
    slide, inside = on_glass(piece, 1.0)
    y, x = (side[0] for side in np.nonzero(inside))
    lumen = np.hypot(*np.ogrid[-400 - y : len(inside) - 400 - y, -300 - x : len(inside) - 300 - x]) < 140
    assert detect_tissue(slide).mask[lumen].all()
    assert not detect_tissue(slide, rule=1).mask[lumen].all()


def test_the_line_around_a_cover_slip_does_not_make_glass_tissue():
    image = np.full((1000, 1000, 3), 243, np.uint8)
    image[100:900, 100:900] = 180
    image[104:896, 104:896] = 243
    assert detect_tissue(ArraySlide(image)).share < 0.1


def test_pale_immunostaining_without_glass_is_tissue():
    grey = mosaic("STR").astype(np.float32).mean(2, keepdims=True)
    pale = 255 - (255 - grey) * np.array([0.45, 0.35, 0.12], np.float32)  # haematoxylin alone
    assert detect_tissue(ArraySlide(pale.astype(np.uint8), mpp=0.5)).share == 1


def test_small_slides_and_those_without_much_glass_are_predicted_whole():
    slide, _ = on_glass(np.full((400, 400, 3), (190, 110, 160), np.uint8), 0.5, 600)
    assert where_to_predict(slide, (2400, 2400)) is not None
    assert where_to_predict(slide, (1200, 1200)) is None
    assert where_to_predict(slide, (1200, 1200), rule=1) is not None
    full, _ = on_glass(np.full((580, 580, 3), (190, 110, 160), np.uint8), 0.5, 600)
    assert where_to_predict(full, (2400, 2400)) is None
    assert where_to_predict(full, (2400, 2400), rule=1) is not None


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
