"""What one click takes: superpixels and predicted regions, on hand-made pictures and by the session."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from napari_sparseseg import Session
from napari_sparseseg.errors import AnnotationError, PredictionError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.component import components_under
from napari_sparseseg.prediction.superpixels import TILE, Scale, Superpixels, along, cut_up
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import real_data
from tests.helpers.smooth_model import CLASSES, COLOURS, SmoothModel


def slide_of(image, **more):
    return ArraySlide([image], mpp=(1.0, 1.0), name="a", **more)


def squares(dtype=np.uint8, channels=3):
    """Grey, with a dark square of 60 px around every multiple of 187."""
    image = np.full((900, 900, channels), 200, dtype)
    for y in range(187, 900, 187):
        for x in range(187, 900, 187):
            image[y - 30 : y + 30, x - 30 : x + 30] = 60
    return image


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.float32, 5)])
def test_superpixels_end_where_the_colour_does(dtype, channels):
    """All that one finds by clicking about in a dark square; three pixels of play, as SLIC smooths the picture."""
    cells = Superpixels(slide_of(squares(dtype=dtype, channels=channels)))
    path = [(float(y), float(x)) for y in range(161, 213, 3) for x in range(161, 213, 3)]
    taken = np.zeros((900, 900), bool)
    for found in cells.crossed(Scale(0, 20), path):
        assert 100 < found.mask.sum() < 1000
        taken[found.y : found.y + found.mask.shape[0], found.x : found.x + found.mask.shape[1]] |= found.mask
    square = np.zeros((900, 900), bool)
    square[157:217, 157:217] = True
    assert (taken & ~ndimage.binary_dilation(square, iterations=3)).sum() < 0.05 * square.sum()
    assert taken[160:214, 160:214].mean() > 0.95


def test_a_superpixel_is_the_same_wherever_it_is_entered():
    """Also across the border of what is cut up at once, where two different ones lie."""
    cells = Superpixels(slide_of(squares()))
    (one,) = cells.crossed(Scale(0, 24), [(300.5, 310.5)])
    ys, xs = np.nonzero(one.mask)
    inside = [(one.y + y + 0.5, one.x + x + 0.5) for y, x in zip(ys[::7], xs[::7], strict=True)]
    again = cells.crossed(Scale(0, 24), inside)
    assert len(again) == 1
    np.testing.assert_array_equal(again[0].mask, one.mask)
    two = cells.crossed(Scale(0, 24), [(100.0, TILE - 1.0), (100.0, TILE + 1.0)])
    assert len(two) == 2
    assert not cells.crossed(Scale(0, 24), [(-3.0, 5.0), (5.0, 900.0)]), "nothing is beside the slide"


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (24, 24), (385, 384)])
def test_slides_smaller_than_a_superpixel_or_just_larger_than_a_tile(shape):
    rng = np.random.default_rng(0)
    cells = Superpixels(slide_of(rng.integers(0, 255, (*shape, 3), np.uint8)))
    found = cells.crossed(Scale(0, 24), [(shape[0] - 0.5, shape[1] - 0.5)])
    assert len(found) == 1
    assert found[0].mask.any()


def test_each_superpixel_of_real_tissue_is_connected():
    picture = np.asarray(Image.open(next(real_data("crc7k").glob("TUM*.png"))).convert("RGB"))
    labels = cut_up(picture, 24)
    assert labels.min() == 1
    for number in np.unique(labels):
        assert ndimage.label(labels == number)[1] == 1


def test_a_path_has_points_every_step_and_no_line_between_runs():
    path = along(np.array([(0, 0), (0, 3), (10, 10), (10, 10)], float), (2, 2), 1.0)
    assert path == [(0, 0), (0, 1), (0, 2), (0, 3), (10, 10), (10, 10)]


def test_regions_under_a_path_are_found_once_each():
    labels = np.ones((20, 20), np.uint8)
    labels[5:10, 5:10] = 2
    labels[12:, :3] = 0
    path = [(1, 1), (6, 6), (7, 7), (1, 2), (19, 0), (40, 3), (-1, 3)]
    found = components_under(labels, path, Box(0, 0, 20, 20), Frame(), (20, 20))
    assert [(c.class_id, c.pixels) for c in found] == [(1, 20 * 20 - 25 - 8 * 3), (2, 25)]


@pytest.fixture
def session(tiny_slide):
    with Session(["glass", "stroma", "nuclei"]) as s:
        s.open(tiny_slide)
        s.use_model(SmoothModel())
        yield s


def test_superpixels_of_a_line_are_one_step_and_zero_erases_them(session):
    a = session.annotations
    session.clicks.superpixels([(300, 200), (300, 400)], 2, pixel=2)
    assert len(a.strokes) == 1
    row = a.read(Box(300, 200, 1, 200))[0]
    assert (row == 2).all(), "every superpixel that the line crosses"
    assert a.counts()[2] > 20 * 200
    session.clicks.superpixels([(300, 300)], 0, pixel=2)
    assert a.read(Box(300, 300, 1, 1))[0, 0] == 0
    a.undo()
    a.undo()
    assert not any(a.counts().values())
    with pytest.raises(AnnotationError, match="class 9"):
        session.clicks.superpixels([(300, 300)], 9)


def test_a_snapped_stroke_from_python_is_that_of_the_brush(session):
    a = session.annotations
    session.clicks.snap([(300, 200), (300, 260)], 10, 1, tolerance=0)
    alone = a.counts()[1]
    a.undo()
    session.clicks.snap([(300, 200), (300, 260)], 10, 1, tolerance=0.8)
    assert a.counts()[1] > 1.5 * alone
    assert (a.read(Box(300, 200, 1, 60)) == 1).all()
    a.undo()
    assert not any(a.counts().values())


def test_regions_along_a_line_are_accepted_in_one_step_and_taken_back_in_one():
    image = np.empty((200, 300, 3), np.uint8)
    image[:, :100], image[:, 100:200], image[:, 200:] = COLOURS
    with Session(CLASSES) as session:
        session.add(slide_of(image))
        session.use_model(SmoothModel())
        a, path = session.annotations, [(100.5, x + 0.5) for x in range(300)]
        labels, _ = session.predict((0, 0, 200, 300))
        found = session.clicks.accept(path)
        assert [c.class_id for c in found] == list(dict.fromkeys(labels[100]))
        assert len(a.dense_regions) == len(found) >= 3
        np.testing.assert_array_equal(a.snapshot().dense.read(0, 100, 101, 0, 300)[0], labels[100])
        assert session.clicks.take_back([path[0]]) == 1
        assert len(a.dense_regions) == len(found) - 1
        a.undo()
        assert session.clicks.take_back(path) == len(found)
        assert session.clicks.take_back(path) == 0
        a.undo()
        a.undo()
        assert not a.dense_regions


def test_without_a_model_regions_are_refused(tiny_slide):
    with Session() as s:
        s.open(tiny_slide)
        with pytest.raises(PredictionError, match="no model"):
            s.clicks.accept([(10, 10)])
        assert s.clicks.shown_region((10, 10)) is None
