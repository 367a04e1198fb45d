"""The live view at work: what it compares with, that it stops, and that it follows the view."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg import open_slide
from napari_sparseseg.geometry import Box
from napari_sparseseg.inference import narrowness
from napari_sparseseg.live import LiveView
from napari_sparseseg.live_tiles import CHANGED, LABELS, TILE
from tests.smooth_model import COLOURS, SmoothModel, write_tall_slide


@pytest.fixture
def slide(tmp_path):
    with open_slide(write_tall_slide(tmp_path / "tall.tif")) as opened:
        yield opened


def live_on(slide, mpp=None) -> LiveView:
    return LiveView(slide, slide.frame(mpp), 3)


def finish(live: LiveView, model: SmoothModel, version: int) -> int:
    """Work until idle; tiles predicted."""
    turns = 0
    while live.work(model, version, 1):
        turns += 1
    return turns


def test_a_coarse_pass_of_the_same_model_is_no_change(slide):
    """The whole slide: a coarse pass, then full resolution, both of the first model: nothing has changed."""
    live, model = live_on(slide), SmoothModel()
    live.request(Box(0, 0, *slide.shape), 8.0)
    assert finish(live, model, 1) > 14
    h, w = slide.shape
    assert live.store.read(LABELS, 0, Box(0, 0, h, w)).all()
    assert not live.store.read(CHANGED, 0, Box(0, 0, h, w)).any()


def test_what_changed_is_where_the_model_before_said_another_class(slide):
    """A model that takes its first two colours for each other changes exactly those two classes."""
    live = live_on(slide)
    live.request(Box(0, 0, TILE, 160), 1.0)
    finish(live, SmoothModel(), 1)
    region = Box(0, 0, TILE, 160)
    before = live.store.read(LABELS, 0, region)
    swapped = SmoothModel(colours=(COLOURS[1], COLOURS[0], COLOURS[2]))
    finish(live, swapped, 2)
    after, changed = live.store.read(LABELS, 0, region), live.store.read(CHANGED, 0, region)
    np.testing.assert_array_equal(changed == 255, before != after)
    np.testing.assert_array_equal(before != after, before < 3)
    finish(live, swapped, 3)
    assert not live.store.read(CHANGED, 0, region).any()


def test_idle_means_no_forward_pass_until_something_changes(slide):
    live, model = live_on(slide), SmoothModel()
    live.request(Box(0, 0, 400, 160), 1.0)
    finish(live, model, 1)
    calls = model.calls
    assert calls
    for _ in range(20):
        live.request(Box(0, 0, 400, 160), 1.0)
        assert not live.work(model, 1, 1)
    assert model.calls == calls
    assert live.work(model, 2, 1)
    assert model.calls > calls


def test_a_pan_drops_what_was_not_begun(slide):
    """One tile of the first view is predicted, then only tiles around the second."""
    live, model = live_on(slide), SmoothModel()
    live.request(Box(0, 0, 1000, 160), 1.0)
    assert live.work(model, 1, 1)
    live.request(Box(6000, 0, 400, 160), 1.0)
    finish(live, model, 1)
    rows = {i for i in range(15) if live.store.get((0, i, 0)) is not None}
    assert len({i for i in rows if i < 10}) == 1
    assert {11, 12} <= rows


@pytest.mark.parametrize("mpp", [0.25, 1.0, 2.0])
def test_a_model_of_another_resolution(slide, mpp):
    """The slide has 0.5 um per px; tiles are predicted at the model's mpp and agree with a prediction on request."""
    from napari_sparseseg.inference import predict_region

    model, live = SmoothModel(mpp=mpp), live_on(slide, mpp)
    live.request(Box(0, 0, 300, 160), 1.0)
    finish(live, model, 1)
    region = live.frame.cover(Box(0, 0, 300, 160))
    expected, _ = predict_region(model, slide, region, live.frame)
    np.testing.assert_array_equal(live.store.read(LABELS, 0, region), expected)


def test_narrowness_by_hand():
    p = np.array([[[1.0, 0.5, 0.5]], [[0.0, 0.5, 0.3]], [[0.0, 0.0, 0.2]]], np.float32)
    assert narrowness(p).tolist() == [[0, 255, 204]]
    assert narrowness(p[:1]).tolist() == [[0, 0, 0]]
