"""A predicted region as a dense region: where it ends, what it leaves out, what counts more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_sparseseg import Annotations, Session
from napari_sparseseg.annotations import Shape
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.component import component_at
from tests.helpers.smooth_model import SmoothModel


def accepted(labels, row, column, region, frame, shape):
    """The component, and as dense region read back at level 0 of a slide."""
    found = component_at(labels, row, column, region, frame, shape)
    a = Annotations(tuple(round(n * d) for n, d in zip(shape, frame.downsample, strict=True)), ["a", "b", "c"])
    assert a.draw([Shape("dense", found.class_id, found.rings)]) == 1
    return found, a


def test_a_rectangle_with_a_hole_by_hand():
    """Rows 2..9 and columns 3..12 at 4 px, without a 2 x 2 hole: 76 px of 16 level-0 px each."""
    labels = np.ones((20, 20), np.uint8)
    labels[2:10, 3:13] = 2
    labels[5:7, 6:8] = 3
    labels[15, 15] = 2
    found, a = accepted(labels, 3, 4, Box(100, 200, 20, 20), Frame((4.0, 4.0)), (400, 400))
    assert (found.class_id, found.pixels, found.cut, len(found.rings)) == (2, 76 * 16, False, 2)
    dense = a.read(Box(400, 800, 80, 80)) > 0
    expected = np.kron(labels == 2, np.ones((4, 4), bool))
    expected[60:64, 60:64] = False
    # corners are cut by less than half a pixel of the prediction
    assert (dense ^ expected).sum() <= 8 * 8
    np.testing.assert_array_equal(dense[2::4, 2::4], expected[2::4, 2::4])


@pytest.mark.parametrize("downsample", [1.0, 3.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_of_a_random_blob_keeps_its_class(seed, downsample):
    """Read back at the prediction's resolution the region is the component, pixel by pixel."""
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.normal(size=(96, 96)), 4) > 0).astype(np.uint8) + 1
    frame = Frame((downsample, downsample))
    _, a = accepted(labels, 48, 48, Box(0, 0, 96, 96), frame, (96, 96))
    marked, _ = ndimage.label(labels == labels[48, 48])
    got = a.snapshot().read_region(Box(0, 0, 96, 96), frame) > 0
    np.testing.assert_array_equal(got, marked == marked[48, 48])


def test_diagonal_neighbours_are_apart():
    labels = np.ones((8, 8), np.uint8)
    labels[2:4, 2:4] = labels[4:6, 4:6] = 2
    assert component_at(labels, 2, 2, Box(0, 0, 8, 8), Frame(), (8, 8)).pixels == 4


def test_what_goes_on_beyond_the_window_is_cut_but_not_at_the_end_of_the_slide():
    labels = np.ones((8, 8), np.uint8)
    assert not component_at(labels, 2, 2, Box(0, 0, 8, 8), Frame(), (8, 8)).cut
    assert component_at(labels, 2, 2, Box(0, 0, 8, 8), Frame(), (8, 9)).cut
    assert component_at(labels, 2, 2, Box(8, 0, 8, 8), Frame(), (16, 8)).cut


@pytest.fixture
def session(tiny_slide):
    with Session(["glass", "stroma", "nuclei"]) as s:
        s.open(tiny_slide)
        s.use_model(SmoothModel())
        yield s


def test_accepted_without_a_live_view_it_is_what_is_predicted(session):
    h, w = session.slide.shape
    labels, _ = session.predict((0, 0, h, w))
    at = (h // 2, w // 4)
    class_id = int(labels[at])
    found = session.accept_region(at)
    assert found.class_id == class_id
    dense = session.annotations.snapshot().dense.read(0, 0, h, 0, w) > 0
    assert dense[at]
    assert (labels[dense] == class_id).mean() > 0.97
    assert session.annotations.undo()
    assert not session.annotations.dense_regions


def test_scribbles_inside_win_before_and_after(session):
    h, w = session.slide.shape
    at = (h // 2, w // 4)
    class_id = int(session.predict((*at, 1, 1))[0][0, 0])
    other = class_id % 3 + 1
    a = session.annotations
    a.paint([at], 3, other)
    session.accept_region((at[0], at[1]))
    assert a.read(Box(*at, 1, 1))[0, 0] == other
    region = a.dense_regions[0]
    free = np.argwhere(a.read(region.box) == class_id)[0] + (region.box.y, region.box.x)
    a.paint([tuple(free + 0.5)], 3, other)
    assert a.read(Box(*(int(v) for v in free), 1, 1))[0, 0] == other


def test_outside_the_slide_is_refused(session):
    with pytest.raises(PredictionError, match="outside"):
        session.accept_region((-5, 10))
