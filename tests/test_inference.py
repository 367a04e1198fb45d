"""Tiles do not show, whatever the region and however it is cut."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_sparseseg.config import ClassDef
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.tiles import (
    PredictionStopped,
    entropy,
    input_region,
    labels_from,
    predict_region,
    predict_tile,
)
from napari_sparseseg.slides import ArraySlide, open_slide
from tests.helpers.smooth_model import SmoothModel

RNG = np.random.default_rng(5)
IMAGE = np.clip(
    np.kron(RNG.integers(60, 250, (25, 31, 3)), np.ones((8, 8, 1))) + RNG.normal(0, 20, (200, 248, 3)), 0, 255
).astype(np.uint8)
PAD = 64


def whole_slide_answer(model: SmoothModel) -> np.ndarray:
    """One pass over the image and its mirror images around it, cut out again: no tiles, no slide reader."""
    framed = np.pad(IMAGE, ((PAD, PAD + 8), (PAD, PAD + 8), (0, 0)), mode="symmetric")
    return model.probabilities(framed)[:, PAD : PAD + 200, PAD : PAD + 248]


@pytest.mark.parametrize("tile", [32, 50, 64, 512])
@pytest.mark.parametrize(("size_divisor", "radius"), [(1, 0), (4, 2), (8, 1), (16, 1)])
def test_tiled_equals_one_pass_over_the_slide(tile, size_divisor, radius):
    model = SmoothModel(size_divisor, radius)
    slide = ArraySlide(IMAGE)
    labels, probabilities = predict_region(model, slide, Box(0, 0, 200, 248), Frame(), tile=tile)
    expected = whole_slide_answer(model)
    np.testing.assert_array_equal(probabilities, expected)
    np.testing.assert_array_equal(labels, expected.argmax(axis=0) + 1)
    assert labels.dtype == np.uint8
    assert probabilities.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    y=st.integers(-30, 199), x=st.integers(-30, 247), h=st.integers(1, 90), w=st.integers(1, 90),
    tile=st.sampled_from([17, 32, 60, 256]),
)  # fmt: skip
def test_any_region_agrees_with_the_whole(y, x, h, w, tile):
    model = SmoothModel(8, 1)
    _, found = predict_region(model, ArraySlide(IMAGE), Box(y, x, h, w), Frame(), tile=tile)
    inside = Box(y, x, h, w).intersection(Box(0, 0, 200, 248))
    cut = found[:, inside.y - y : inside.y1 - y, inside.x - x : inside.x1 - x]
    np.testing.assert_array_equal(cut, whole_slide_answer(model)[(slice(None), *inside.slices())])


def test_overlapping_regions_agree_at_a_broken_resolution(cmu_svs):
    model = SmoothModel(8, 2)
    with open_slide(cmu_svs) as slide:
        frame = slide.frame(1.37)
        _, large = predict_region(model, slide, Box(100, 200, 500, 400), frame, tile=130)
        _, small = predict_region(model, slide, Box(333, 351, 71, 93), frame, tile=512)
    np.testing.assert_array_equal(small, large[:, 233:304, 151:244])


def test_the_halo_is_read_aligned_and_no_more():
    model = SmoothModel(8, 1)
    assert input_region(model, Box(0, 0, 64, 64)) == Box(-16, -16, 96, 96)
    assert input_region(model, Box(3, 9, 10, 8)) == Box(-16, -8, 48, 48)


def test_a_single_tile_equals_its_part_of_the_region():
    model, slide = SmoothModel(), ArraySlide(IMAGE)
    _, whole = predict_region(model, slide, Box(0, 0, 200, 248), Frame())
    np.testing.assert_array_equal(predict_tile(model, slide, Box(40, 50, 30, 20), Frame()), whole[:, 40:70, 50:70])


@pytest.mark.parametrize("step", [2.0, 3.0, 0.5, 1.6])
def test_a_model_sees_its_own_resolution_whatever_is_asked(step):
    """Coarser pixels hold the mean of what the model says of their area, finer ones lie between its pixels."""
    model = SmoothModel()
    frame, seen = Frame((step, step)), Frame()
    height, width = int(200 / step) - 1, int(248 / step) - 1
    region = Box(1, 1, height - 1, width - 1)
    _, found = predict_region(model, ArraySlide(IMAGE), region, frame, read_frame=seen, tile=37)
    native = whole_slide_answer(model)
    for y, x in ((0, 0), (height - 2, width - 2), (height // 2, 5)):
        if step > 1:
            weights = []
            for i in (y + 1, x + 1):
                edges = np.arange(249)
                weights.append(np.clip(np.minimum(edges + 1, (i + 1) * step) - np.maximum(edges, i * step), 0, None))
            expected = np.einsum("kyx,y,x->k", native, weights[0][:200], weights[1][:248]) / step**2
        else:
            cy, cx = ((i + 1.5) * step - 0.5 for i in (y, x))
            expected = map_coordinates_each(native, cy, cx)
        np.testing.assert_allclose(found[:, y, x], expected, atol=1e-5)


def map_coordinates_each(images: np.ndarray, y: float, x: float) -> np.ndarray:
    return np.array([ndimage.map_coordinates(image, [[y], [x]], order=1)[0] for image in images])


def test_an_empty_region_is_empty():
    labels, probabilities = predict_region(SmoothModel(), ArraySlide(IMAGE), Box(5, 5, 0, 7), Frame())
    assert labels.shape == (0, 7)
    assert probabilities.shape == (3, 0, 7)


def test_labels_are_class_ids_and_the_first_wins_a_tie():
    classes = (ClassDef(7, "a", "#000000"), ClassDef(200, "b", "#111111"))
    probabilities = np.array([[[0.5, 0.2]], [[0.5, 0.8]]], np.float32)
    np.testing.assert_array_equal(labels_from(probabilities, classes), [[7, 200]])


def test_entropy_by_hand():
    # Two classes: certain 0; even 1 bit of 1 bit; (0.25, 0.75): 0.8113 bit.
    probabilities = np.array([[[1.0, 0.5, 0.25]], [[0.0, 0.5, 0.75]]], np.float32)
    np.testing.assert_array_equal(entropy(probabilities), [[0, 255, round(255 * 0.811278)]])
    np.testing.assert_array_equal(entropy(np.ones((1, 2, 2), np.float32)), np.zeros((2, 2)))


def test_stop_ends_it_before_the_next_tile():
    stop = threading.Event()
    stop.set()
    model = SmoothModel()
    with pytest.raises(PredictionStopped, match="stopped"):
        predict_region(model, ArraySlide(IMAGE), Box(0, 0, 200, 248), Frame(), stop=stop)
    assert model.calls == 0
