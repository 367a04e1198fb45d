"""The list of strokes: pixels, loss and predicted class against models whose answers are known."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.errors import PredictionError, SlideError
from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.agreement import AgreementScorer, count_pixels
from napari_sparseseg.session.strokes import ListedStroke, confusion_of
from tests.helpers.halves import Halves
from tests.helpers.learning_scene import CLASSES, make_source, write_slide
from tests.helpers.smooth_model import CLASSES as COLOURS
from tests.helpers.smooth_model import SmoothModel, patches_slide


def square(y, x, side):
    return [(y, x), (y, x + side), (y + side, x + side), (y + side, x)]


class Sure(Halves):
    """As `Halves`, with 0.75 for the class that it predicts and 0.25 for the other."""

    def probabilities(self, pixels, *, origin=(0, 0)):
        out = super().probabilities(pixels, origin=origin)
        out[:2] = 0.25 + 0.5 * out[:2]
        return out


@pytest.fixture
def path(tmp_path):
    return write_slide(tmp_path / "slide.tif")


def scored(path, annotations, model, strokes=None):
    source = make_source(path, annotations)
    scorer = AgreementScorer(model, source, strokes or (*annotations.strokes, *annotations.dense_regions))
    while scorer.advance():
        pass
    source.slide.close()
    return scorer


def test_loss_and_predicted_classes_by_hand(path):
    """A square of 100 px, wrong from its 75th column on: a quarter has probability 0.25, the rest 0.75."""
    a = Annotations((600, 800), classes=CLASSES)
    a.fill_polygon(square(100, 100, 100), 1)
    scorer = scored(path, a, Sure(175))
    found = scorer.found[a.strokes[0].id]
    assert found.predicted[1:3].tolist() == [7500, 2500]
    assert found.loss / found.pixels == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert scorer.windows == 1, "all of it lies in one square"


def test_what_was_drawn_over_counts_for_what_lies_above(path):
    a = Annotations((600, 800), classes=CLASSES)
    a.fill_polygon(square(100, 100, 100), 1)
    a.fill_polygon(square(100, 150, 100), 2)
    a.fill_polygon(square(90, 90, 200), 2, dense=True)
    first, second = a.strokes
    assert count_pixels(a.snapshot(), first) == 5_000
    assert count_pixels(a.snapshot(), second) == 10_000
    assert count_pixels(a.snapshot(), a.dense_regions[0]) == 40_000 - 15_000 + 10_000, "scribbles of its class count"
    found = scored(path, a, Sure(150)).found
    assert found[first.id].predicted[1] == 5_000
    assert found[second.id].predicted[2] == 10_000


def test_a_model_without_the_class_says_nothing(path):
    a = Annotations((600, 800), classes=CLASSES)
    a.paint([(50, 50), (50, 90)], 5, 3)
    assert not scored(path, a, Halves(400, CLASSES[:2])).found


def test_strokes_share_squares_and_a_long_one_has_few(path):
    a = Annotations((600, 800), classes=CLASSES)
    for y in range(10, 250, 20):
        a.paint([(y, 10), (y, 200)], 3, 1)
    a.paint([(300, 5), (590, 795), (300, 795), (590, 5)], 3, 2)
    assert scored(path, a, Halves(400), a.strokes[:-1]).windows == 1
    assert scored(path, a, Halves(400), a.strokes[-1:]).windows == 4


@pytest.fixture
def session():
    with Session() as made:
        made.add(patches_slide())
        made.classes = COLOURS
        yield made


def draw_truth(session):
    """A square in each of the first ten blocks of 100 px: right, but for the last, which has the next class."""
    truth = session.slide.truth
    for k in range(10):
        class_id = int(truth[50, 100 * k + 50])
        session.annotations.fill_polygon(square(30, 100 * k + 30, 40), class_id if k < 9 else class_id % 3 + 1)
    return [s.id for s in session.annotations.strokes]


def test_the_stroke_with_the_wrong_class_comes_first(session):
    ids = draw_truth(session)
    assert [s.loss for s in session.strokes.list()] == [None] * 10
    with pytest.raises(PredictionError, match="no model"):
        session.strokes.score()
    session.use_model(SmoothModel())
    seen = []
    worst, *others = session.strokes.score(progress=seen.append)
    assert seen[-1] == 1.0
    assert worst.id == ids[-1]
    assert worst.mostly == int(session.slide.truth[50, 950])
    assert worst.agreement == 0.0
    assert worst.loss > 1 > max(s.loss for s in others)
    assert all(s.agreement == 1.0 and s.mostly == s.class_id for s in others)
    assert [s.pixels for s in others] == [1600] * 9
    assert not any(s.held_out for s in (worst, *others)), "nothing was held out from a model that was loaded"
    session.set_role("held-out")
    assert all(s.held_out for s in session.strokes.list())


def test_only_what_changed_is_predicted_again(session):
    ids = draw_truth(session)
    model = SmoothModel()
    session.use_model(model)
    session.strokes.score()
    calls = model.calls
    session.strokes.score()
    assert model.calls == calls
    session.strokes.change(ids[-1:], int(session.slide.truth[50, 950]))
    assert session.strokes.score()[0].loss < 1
    assert model.calls == calls + 1
    assert all(s.loss is not None for s in session.strokes.list())
    assert session.history.undo().startswith("polygon to")
    assert session.strokes.score()[0].id == ids[-1]
    assert model.calls == calls + 1, "it is as it was"


def test_scoring_can_be_stopped(session):
    draw_truth(session)
    session.annotations.fill_polygon(square(800, 800, 60), 1)
    session.use_model(SmoothModel())
    stop = threading.Event()
    rows = session.strokes.score(progress=lambda done: stop.set(), stop=stop)
    assert {s.loss is None for s in rows} == {True, False}
    assert rows[-1].loss is None
    assert not any(s.loss is None for s in session.strokes.score())


def test_held_out_strokes_are_those_of_training(tiny_slide):
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        for y in (100, 300, 500):
            s.annotations.paint([(y, 50), (y, 300)], 10, 1)
            s.annotations.paint([(y, 700), (y, 950)], 10, 2)
        s.train(steps=1, wait=True)
        rows = s.strokes.score()
    assert [sum(r.held_out for r in rows if r.class_id == c) for c in (1, 2)] == [1, 1]
    assert all(r.loss is not None for r in rows)


def test_a_list_needs_a_slide():
    with Session() as s, pytest.raises(SlideError, match="no slide"):
        s.strokes.list()


def test_confusion_counts_pixels_of_scored_strokes():
    box = Box(0, 0, 1, 1)
    rows = [
        ListedStroke(1, "brush", 1, box, 10, True, 0.1, {1: 8, 2: 2}),
        ListedStroke(2, "dense", 2, box, 10, False, 2.0, {1: 5, 9: 1}),
        ListedStroke(3, "brush", 2, box, 10, False),
    ]
    np.testing.assert_array_equal(confusion_of(rows, [1, 2]), [[8, 2], [5, 0]])
    assert rows[1].agreement == 0
    assert rows[2].agreement is None
    assert rows[2].mostly is None
