"""The live view at work: what it compares with, that it stops, and that it follows the view."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_sparseseg import Session, open_slide
from napari_sparseseg.geometry import Box
from napari_sparseseg.gui.sections.predict.areas import areas
from napari_sparseseg.prediction.live_view import WIDEST, LiveView, rectangle
from napari_sparseseg.prediction.tile_store import CHANGED, LABELS, PROBABILITY, TILE
from napari_sparseseg.prediction.tiles import narrowness, predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.networks import model_of, two_speed
from tests.helpers.smooth_model import CLASSES, COLOURS, SmoothModel, write_tall_slide
from tests.helpers.waiting import wait_until


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


def test_a_view_too_wide_to_be_predicted_in_full_is_rough():
    """80 tiles of 512 px, of which 64 are predicted at full resolution; of 16 all."""
    with ArraySlide(np.zeros((10 * TILE, 8 * TILE, 3), np.uint8)) as slide:
        live, model = live_on(slide), SmoothModel()
        live.request(Box(0, 0, *slide.shape), 8.0)
        finish(live, model, 1)
        assert live.rough
        live.request(Box(0, 0, 4 * TILE, 4 * TILE), 2.0)
        finish(live, model, 1)
        assert not live.rough


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
    model, live = SmoothModel(mpp=mpp), live_on(slide, mpp)
    live.request(Box(0, 0, 300, 160), 1.0)
    finish(live, model, 1)
    region = live.frame.cover(Box(0, 0, 300, 160))
    expected, _ = predict_region(model, slide, region, live.frame)
    np.testing.assert_array_equal(live.store.read(LABELS, 0, region), expected)


def test_a_newer_model_leaves_nothing_of_the_one_before(slide):
    """The model changes in the middle of a view: every tile ends with the newer one, whose labels are shown."""
    live = live_on(slide)
    live.request(Box(0, 0, 900, 160), 1.0)
    assert live.work(SmoothModel(), 1, 1)
    swapped = SmoothModel(colours=(COLOURS[1], COLOURS[0], COLOURS[2]))
    while live.work(swapped, 2, 7):
        pass
    tiles = [live.store.get((0, i, 0)) for i in range(2)]
    assert [(t.model_version, t.annotation_version) for t in tiles] == [(2, 7)] * 2
    expected, _ = predict_region(swapped, slide, Box(0, 0, 900, 160), live.frame)
    np.testing.assert_array_equal(live.store.read(LABELS, 0, Box(0, 0, 900, 160)), expected)


def test_strips_give_the_tiles_that_a_pass_of_its_own_gives():
    """Two rows and three columns of tiles, seen from the middle, at the slide's edges."""
    image = np.kron(np.random.default_rng(4).integers(90, 230, (90, 150, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    slide, model = ArraySlide(image, mpp=1.0), model_of(two_speed())
    live = LiveView(slide, slide.frame(None), len(model.metadata.classes))
    box = Box(0, 0, *slide.shape)
    live.request(box, 1.0)
    seen = []
    live.updated.connect(seen.append)
    assert finish(live, model, 1) > 6
    assert not live.pending
    expected, probabilities = predict_region(model, slide, box, live.frame)
    assert len(np.unique(expected)) > 1
    assert (live.store.read(LABELS, 0, box) != expected).mean() < 1e-4
    assert abs(live.store.read(PROBABILITY, 0, box) - 255 * probabilities[0]).max() < 1
    fine = [b for b in seen if b.height <= TILE and b.width <= TILE]
    assert {(b.y, b.x) for b in fine} >= {(y, x) for y in (0, TILE) for x in (0, TILE, 2 * TILE)}


@given(missing=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1))
@settings(max_examples=40, deadline=None)
def test_a_rectangle_has_missing_tiles_only(missing):
    at = sorted(missing)[len(missing) // 2]
    found = rectangle(missing, at)
    cells = {(i, j) for i in range(found.y, found.y1) for j in range(found.x, found.x1)}
    assert at in cells <= missing
    assert found.width <= WIDEST
    assert not all((found.y1, j) in missing for j in range(found.x, found.x1))


def all_predicted(live, box):
    return live.store.read(LABELS, 0, live.frame.cover(box)).all() and not live.pending


def test_two_slides_with_a_loaded_model_keep_their_tiles(slide, tmp_path):
    """No training; the second slide has half the model's mpp. Back on the first, nothing is predicted again."""
    pixels = slide.read(Box(0, 0, 800, 160))
    model = SmoothModel(mpp=0.5)
    with Session(CLASSES) as session:
        one = session.open(slide.path)
        two = session.add(ArraySlide(np.kron(pixels, np.ones((2, 2, 1), np.uint8)), mpp=0.25))
        session.live_enabled = True
        session.use_model(model)
        shown = []
        for opened in (one, two, one):
            calls = model.calls
            session.activate(opened)
            session.look_at((0, 0, 400, 160), 1.0)
            wait_until(lambda opened=opened: session.live is not None and session.live.slide is opened)
            wait_until(lambda: all_predicted(session.live, Box(0, 0, 400, 160)))
            shown.append(session.live)
        assert shown[2] is shown[0]
        assert model.calls == calls
        assert session.status.step == 0
        for live, side in ((shown[0], 400), (shown[1], 200)):
            region = live.frame.cover(Box(0, 0, 400, 160))
            assert (region.height, live.frame.downsample) == (side, (400 / side,) * 2)
            expected, _ = predict_region(model, live.slide, region, live.frame)
            np.testing.assert_array_equal(live.store.read(LABELS, 0, region), expected)
        first, second = (areas(live, Box(0, 0, 400, 160), CLASSES) for live in (shown[0], shown[1]))
        assert sum(a.mm2 for a in first) == pytest.approx(400 * 160 * 0.5**2 / 1e6)
        assert sum(a.mm2 for a in second) == pytest.approx(400 * 160 * 0.25**2 / 1e6)
        labels = shown[1].store.read(LABELS, 0, Box(0, 0, 200, 80))
        assert [a.share for a in second] == [pytest.approx((labels == c.id).mean()) for c in CLASSES]


def test_narrowness_by_hand():
    p = np.array([[[1.0, 0.5, 0.5]], [[0.0, 0.5, 0.3]], [[0.0, 0.0, 0.2]]], np.float32)
    assert narrowness(p).tolist() == [[0, 255, 204]]
    assert narrowness(p[:1]).tolist() == [[0, 0, 0]]


class Says(SmoothModel):
    """Answers one class everywhere: what is shown tells which model said it."""

    def __init__(self, class_id):
        super().__init__()
        self.class_id = class_id

    def probabilities(self, pixels, *, origin=(0, 0)):
        out = np.zeros((3, *pixels.shape[:2]), np.float32)
        out[self.class_id - 1] = 1
        return out


WIDE = (8192, 3072)
"""96 tiles at full resolution: more than a view gets, so that a part of the whole view stays coarse."""


@pytest.fixture(scope="module")
def wide_slide():
    with ArraySlide(np.zeros((*WIDE, 3), np.uint8)) as opened:
        yield opened


def assert_all_of_the_view_says(live: LiveView, class_id: int) -> None:
    """At the level that napari shows for the zoom, and at the finer one that it shows on a dense screen."""
    box, pixel_size = live.view.box, live.view.pixel_size
    shown = min(int(np.log2(max(pixel_size, 1))), live.store.n_levels - 1)
    for level in {shown, max(shown - 1, 0)} if len(live.store.shapes) > 1 else {0}:
        if level == 0 and box.area > 64 * TILE * TILE:
            continue  # napari shows level 0 of no view that large
        y0, x0, y1, x1 = (n >> level for n in (box.y, box.x, box.y1, box.x1))
        labels = live.store.read(LABELS, level, Box(y0, x0, y1 - y0, x1 - x0))
        assert (labels == class_id).all(), (level, np.unique(labels, return_counts=True))


zooms = st.sampled_from([1.0, 2.0, 4.0, 8.0])
turns = st.sampled_from([0, 1, 3, 1000])


@settings(max_examples=8)
@given(st.lists(st.tuples(zooms, st.floats(0, 1), st.floats(0, 1), st.booleans(), turns), min_size=1, max_size=5))
def test_idle_means_that_the_newest_model_has_answered_everywhere(wide_slide, steps):
    """Zooms, pans and new models in any order, each with some or all of its work done; the last one is finished."""
    live, version = live_on(wide_slide), 1
    for zoom, down, right, new_model, work in [*steps, (8.0, 0.5, 0.5, False, 1000)]:
        version += new_model
        side = int(1000 * zoom)
        h, w = min(side, WIDE[0]), min(side, WIDE[1])
        live.request(Box(int(down * (WIDE[0] - h)), int(right * (WIDE[1] - w)), h, w), zoom)
        for _ in range(work):
            if not live.work(Says(version % 3 + 1), version, 1):
                break
    assert_all_of_the_view_says(live, version % 3 + 1)


def test_a_zoom_in_before_does_not_hide_the_coarse_answer_of_the_whole_slide(wide_slide):
    live = live_on(wide_slide)
    live.request(Box(3500, 1000, 1000, 1000), 1.0)
    finish(live, Says(1), 1)
    live.request(Box(0, 0, *WIDE), 8.0)
    finish(live, Says(1), 1)
    assert_all_of_the_view_says(live, 1)
