"""Held-out strokes that a model gets wrong, against models whose mistakes are known."""

from __future__ import annotations

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.config import make_classes
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.learning.holdout import HeldOut
from napari_sparseseg.prediction.review import mistakes
from tests.helpers.halves import Halves
from tests.helpers.learning_scene import CLASSES, make_source, scribbled, write_slide


def held(path, annotations: Annotations, mpp=None) -> HeldOut:
    source = make_source(path, annotations, mpp)
    chosen = HeldOut(0, window=256)
    chosen.update([source], make_classes(CLASSES))
    return chosen


@pytest.fixture
def path(tmp_path):
    return write_slide(tmp_path / "slide.tif")


def test_a_model_that_is_right_has_no_mistakes(path):
    """Strokes of class 1 lie left of column 336, those of class 2 right of 441; class 3 has one and is not held out."""
    chosen = held(path, scribbled())
    assert {c for u in chosen.exclude[0] for c in u.classes} == {1, 2}
    assert mistakes(Halves(400), chosen) == []


def test_the_worst_stroke_comes_first_and_says_what_it_was_taken_for(path):
    """With the border at column 200 part of class 1's stroke is wrong; at 900 all of class 2's is, and nothing else."""
    (first,) = mistakes(Halves(200), held(path, scribbled()))
    assert (first.truth, first.predicted) == (1, 2)
    assert 0.2 < first.share < 0.8
    assert first.box.x == 200
    (second,) = mistakes(Halves(900), held(path, scribbled()))
    assert (second.truth, second.predicted, second.share) == (2, 1, 1.0)
    both = mistakes(Halves(0), held(path, scribbled()))
    assert [m.truth for m in both] == [1]
    turned = Halves(250)
    turned.probabilities = lambda pixels, origin=(0, 0): Halves.probabilities(turned, pixels, origin=origin)[[1, 0, 2]]
    shares = [m.share for m in mistakes(turned, held(path, scribbled()))]
    assert len(shares) == 2
    assert shares == sorted(shares, reverse=True)


def test_share_and_box_by_hand(path):
    """A 100 px wide filled square at columns 100..199, wrong from column 150 on: half, box of 100 x 50 px."""
    a = Annotations((600, 800), classes=CLASSES)
    for y in (100, 300):
        a.fill_polygon([(y, 100), (y, 200), (y + 100, 200), (y + 100, 100)], 1)
        a.fill_polygon([(y, 500), (y, 600), (y + 100, 600), (y + 100, 500)], 2)
    (found,) = mistakes(Halves(150), held(path, a))
    assert found.share == pytest.approx(0.5)
    assert (found.box.x, found.box.width, found.box.height) == (150, 50, 100)
    assert found.box.y in (100, 300)
    assert found.centre == (found.box.y + 50, 175)


def test_classes_that_the_model_does_not_have_are_left_out(path):
    a = scribbled()
    a.paint([(560, 600), (560, 650)], 4, 3)
    assert 3 in {c for u in held(path, a).exclude[0] for c in u.classes}
    assert {m.truth for m in mistakes(Halves(0, CLASSES[:2]), held(path, a))} == {1}


def test_a_session_says_why_there_is_nothing_to_review(tiny_slide, tmp_path):
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        with pytest.raises(PredictionError, match="no model"):
            s.review()
        s.annotations.paint([(100, 50), (100, 300)], 10, 1)
        s.annotations.paint([(100, 700), (100, 950)], 10, 2)
        s.train(steps=1, wait=True)
        with pytest.raises(PredictionError, match="no stroke is held out"):
            s.review()
        s.save_model(tmp_path / "m.safetensors")
        for y in (300, 500):
            s.annotations.paint([(y, 50), (y, 300)], 10, 1)
            s.annotations.paint([(y, 700), (y, 950)], 10, 1 if y == 500 else 2)
        s.train(steps=1, wait=True)
        for found in s.review():
            assert found.slide is s.slide
            assert 0.1 <= found.share <= 1
    with Session(["stripes", "dots"]) as s:
        s.open(tiny_slide)
        s.load_model(tmp_path / "m.safetensors")
        with pytest.raises(PredictionError, match="was loaded"):
            s.review()
