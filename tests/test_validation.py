"""What is held out is never trained on, comes in turn, and is scored as counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from napari_sparseseg import metrics
from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.holdout import HeldOut
from napari_sparseseg.learning.sampling import PatchSampler, Source
from napari_sparseseg.learning.sources import held_labels, training_labels
from napari_sparseseg.learning.validation import ValidationSchedule, spread
from napari_sparseseg.metrics import Scorer
from napari_sparseseg.slides import ArraySlide
from tests.helpers.learning_scene import CLASSES, make_source, scribbled, write_slide

TABLE = make_classes(CLASSES)
FRAME = Frame()


@pytest.fixture
def source(tmp_path):
    made = make_source(write_slide(tmp_path / "slide.tif"), scribbled())
    yield made
    made.slide.close()


def on_white(annotations, role="train", slide=None) -> Source:
    return Source(slide or ArraySlide(np.full((600, 800, 3), 255, np.uint8)), annotations.snapshot(), FRAME, role)


def held_ids(held_out, source=0) -> list[int]:
    return sorted(u.stroke.id for u in held_out.exclude.get(source, ()) if u.stroke is not None)


def many_strokes(per_class=6) -> Annotations:
    annotations = Annotations((600, 800), classes=CLASSES)
    for k in range(3 * per_class):
        y, x = 20 + 90 * (k % 6), 20 + 130 * (k // 6)
        annotations.paint([(y, x), (y + 40, x + 80)], 4, k % 3 + 1)
    return annotations


def prediction_of(table, truth_class_of, sure=0.9):
    """A function (source, region) -> probabilities that gives `sure` to the class `truth_class_of(rows, columns)`."""

    def probabilities(source, region):
        rows, columns = np.mgrid[region.y : region.y1, region.x : region.x1]
        chosen = truth_class_of(rows, columns)
        rest = (1 - sure) / (len(table) - 1)
        return np.stack([np.where(chosen == c.id, sure, rest) for c in table]).astype(np.float32)

    return probabilities


def score(held_out, probabilities):
    """Scores of a function (source, region) -> probabilities on all windows."""
    scorer = Scorer(held_out.classes)
    for window in held_out.windows():
        scorer.add(window.labels, probabilities(held_out.sources[window.source], window.region))
    return held_out.scores(scorer)


def test_one_stroke_of_each_class_with_two_or_more(source):
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    strokes = {s.id: s.class_id for s in source.labels.strokes}
    assert sorted(strokes[i] for i in held_ids(held_out)) == [1, 2]
    (warning,) = held_out.warnings
    assert "rare cannot be scored" in warning
    assert "draw another" in warning


def test_a_fifth_of_the_strokes_but_never_more_than_asked():
    source = on_white(many_strokes(per_class=10))
    for most, expected in ((12, 2), (1, 1)):
        held_out = HeldOut(seed=0, most=most)
        held_out.update([source], TABLE)
        classes = [u.stroke.class_id for u in held_out.exclude[0]]
        assert [classes.count(c) for c in (1, 2, 3)] == [expected] * 3
        assert held_out.warnings == ()


@pytest.mark.parametrize("seed", range(5))
def test_training_and_held_out_labels_are_disjoint_and_lose_nothing_far_away(source, seed):
    held_out = HeldOut(seed=seed)
    held_out.update([source], TABLE)
    whole = Box(0, 0, 600, 800)
    for _ in range(4):
        held = held_out.exclude[0]
        train, test = training_labels(source, whole, held), held_labels(source, whole, held)
        everything = source.read_labels(whole)
        assert not ((train > 0) & (test > 0)).any()
        # The strokes of the scene do not meet: all labels are on one side or the other.
        np.testing.assert_array_equal(train | test, everything)
        assert set(np.unique(train)) == {0, 1, 2, 3}
        assert set(np.unique(test)) == {0, 1, 2}
        held_out.swap()


def test_swapping_gives_every_stroke_its_turn(source):
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    seen = set(held_ids(held_out))
    for _ in range(3):
        held_out.swap()
        seen |= set(held_ids(held_out))
    # Four strokes of class 1 take four turns; class 2 has three; the only stroke of class 3 is never held out.
    assert seen == {s.id for s in source.labels.strokes if s.class_id != 3}


def test_a_swap_says_that_the_strokes_may_have_been_trained_on(source):
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    assert held_out.seen == 0
    held_out.swap()
    assert held_out.seen == len(held_out.exclude[0]) == 2


def test_what_is_held_out_stays_while_strokes_are_added_and_undone():
    annotations = many_strokes()
    slide = ArraySlide(np.full((600, 800, 3), 255, np.uint8))
    held_out = HeldOut(seed=1)
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    first = held_ids(held_out)
    for k in range(3):
        annotations.paint([(20 + 90 * k, 500), (60 + 90 * k, 600)], 4, 1)
        held_out.update([on_white(annotations, slide=slide)], TABLE)
        # More strokes, more to hold out: but only of the new ones, which no model has seen.
        assert held_ids(held_out)[: len(first)] == first
        assert held_out.seen == 0
    assert len(held_ids(held_out)) == len(first) + 1
    for _ in range(3):
        annotations.undo()
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    assert held_ids(held_out) == first


def test_new_strokes_are_held_out_before_those_that_were_trained_on():
    annotations = Annotations((600, 800), classes=CLASSES)
    slide = ArraySlide(np.full((600, 800, 3), 255, np.uint8))
    annotations.paint([(50, 50), (50, 150)], 5, 1)
    held_out = HeldOut(seed=0)
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    assert held_out.exclude == {}
    annotations.paint([(250, 50), (250, 150)], 5, 1)
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    assert held_ids(held_out) == [annotations.snapshot().strokes[1].id]
    assert held_out.seen == 0


def test_an_erased_stroke_is_replaced():
    annotations = many_strokes()
    slide = ArraySlide(np.full((600, 800, 3), 255, np.uint8))
    held_out = HeldOut(seed=0)
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    gone = next(u.stroke for u in held_out.exclude[0] if u.stroke.class_id == 2)
    annotations.erase(gone.points, 30)
    held_out.update([on_white(annotations, slide=slide)], TABLE)
    assert gone.id not in held_ids(held_out)
    assert sorted(u.stroke.class_id for u in held_out.exclude[0]) == [1, 2, 3]


def test_the_last_living_stroke_of_a_class_stays_in_training():
    annotations = Annotations((600, 800), classes=CLASSES)
    for y in (50, 250):
        annotations.paint([(y, 50), (y, 150)], 5, 1)
        annotations.paint([(y, 450), (y, 550)], 5, 2)
    annotations.erase([(50, 40), (50, 160)], 20)
    held_out = HeldOut(seed=0)
    held_out.update([on_white(annotations)], TABLE)
    assert {u.stroke.class_id for u in held_out.exclude[0]} == {2}
    assert any("left cannot be scored" in w for w in held_out.warnings)


def test_two_strokes_over_each_other_cannot_be_told_apart():
    """Holding one out would leave the other without a pixel: the class must not vanish from training."""
    annotations = Annotations((600, 800), classes=CLASSES)
    for _ in range(2):
        annotations.paint([(560, 700), (590, 780)], 6, 3)
    held_out = HeldOut(seed=0)
    held_out.update([on_white(annotations)], TABLE)
    assert held_out.exclude == {}


def test_with_three_slides_whole_slides_are_held_out():
    sources = [on_white(many_strokes()) for _ in range(4)]
    held_out = HeldOut(seed=0)
    held_out.update(sources, TABLE)
    assert len(held_out.exclude) == 1
    turns = []
    for _ in range(4):
        ((k, units),) = held_out.exclude.items()
        assert [u.stroke for u in units] == [None]
        sampler = PatchSampler(sources, TrainConfig(patch_px=32), exclude=held_out.exclude)
        assert k not in sampler.draw(12).origins[:, 0]
        assert {w.source for w in held_out.windows()} == {k}
        turns.append(k)
        held_out.swap()
    assert sorted(turns) == [0, 1, 2, 3]


def test_a_class_of_one_slide_only_is_scored_by_strokes_there():
    sources = []
    for k in range(3):
        annotations = many_strokes()
        if k:
            annotations = Annotations((600, 800), classes=CLASSES)
            for y in (50, 150, 250):
                annotations.paint([(y, 50), (y, 150)], 5, 1)
                annotations.paint([(y, 450), (y, 550)], 5, 2)
        sources.append(on_white(annotations))
    held_out = HeldOut(seed=0)
    held_out.update(sources, TABLE)
    whole = [k for k, units in held_out.exclude.items() if units[0].stroke is None]
    assert whole
    assert 0 not in whole
    assert {u.stroke.class_id for u in held_out.exclude[0]} == {3}
    assert held_out.warnings == ()


def test_slides_marked_held_out_are_all_that_is():
    two_classes = Annotations((600, 800), classes=CLASSES)
    two_classes.paint([(50, 50), (50, 150)], 5, 1)
    two_classes.paint([(150, 50), (150, 150)], 5, 2)
    sources = [on_white(many_strokes()), on_white(two_classes, role="held-out")]
    held_out = HeldOut(seed=0)
    held_out.update(sources, TABLE)
    held_out.swap()
    assert set(held_out.exclude) == {1}
    assert held_out.seen == 0
    assert "rare cannot be scored: it is not labelled on the slides held out" in held_out.warnings[0]


def test_scores_by_hand(source):
    """A prediction that finds class 1 in one corner only, against a count over the whole slide at once."""
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    truth = held_labels(source, Box(0, 0, 600, 800), held_out.exclude[0])
    rows, columns = np.mgrid[:600, :800]

    def guess(r, c):
        return np.where((c < 400) & (r < 60), 1, 2)

    scores = score(held_out, prediction_of(TABLE, guess, sure=0.7))
    chosen = guess(rows, columns)
    expected = np.array([[np.count_nonzero((truth == t) & (chosen == p)) for p in (1, 2, 3)] + [0] for t in (1, 2, 3)])
    np.testing.assert_array_equal(scores.confusion, expected)
    assert scores.units == 2
    accuracy = np.trace(expected[:, :3]) / expected.sum()
    assert scores.calibration_error == pytest.approx(abs(0.7 - accuracy), abs=1e-6)
    assert scores.balanced_dice == pytest.approx(metrics.balanced_dice(expected))


def test_a_perfect_and_a_blind_prediction(source):
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    perfect = score(held_out, prediction_of(TABLE, lambda r, c: np.where(c < 400, 1, 2)))
    assert perfect.balanced_dice == pytest.approx(1.0)
    blind = score(held_out, prediction_of(TABLE, lambda r, c: np.ones_like(r)))
    assert blind.balanced_dice == pytest.approx((2 / 3 + 0) / 2)


def test_the_report_is_json_with_what_a_reader_needs(source):
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    report = json.loads(json.dumps(score(held_out, prediction_of(TABLE, lambda r, c: np.ones_like(r))).to_json()))
    assert report["classes"]["left"]["recall"] == 1.0
    assert report["classes"]["right"]["recall"] == 0.0
    assert report["classes"]["left"]["precision"] == pytest.approx(0.5)
    assert report["classes"]["rare"] == {"id": 3, "pixels": 0, "dice": None, "precision": None, "recall": None}
    assert len(report["confusion"]) == 3
    assert report["warnings"]


def test_windows_are_few_lie_on_the_grid_and_show_every_class():
    annotations = Annotations((4000, 4000), classes=CLASSES)
    for k in range(30):
        y = 60 + 128 * k
        annotations.paint([(y, 50), (y, 1900)], 6, 1)
        annotations.paint([(y, 2100), (y, 3900)], 6, 2)
    for y in (100, 2000):
        annotations.paint([(y, 2000), (y, 2010)], 6, 3)
    slide = ArraySlide(np.full((4000, 4000, 3), 255, np.uint8))
    source = Source(slide, annotations.snapshot(), FRAME)
    held_out = HeldOut(seed=0, window=128, max_windows=9)
    held_out.update([source], TABLE)
    windows = held_out.windows()
    assert len(windows) == 9
    assert len({w.region for w in windows}) == 9
    for window in windows:
        assert window.region.y % 128 == window.region.x % 128 == 0
        assert window.labels.shape == (128, 128)
        assert not (training_labels(source, window.region, held_out.exclude[0])[window.labels > 0]).any()
    assert {int(c) for w in windows for c in np.unique(w.labels)} == {0, 1, 2, 3}
    assert held_out.windows() is windows


def test_dense_regions_are_held_out_as_wholes_with_all_their_classes():
    annotations = Annotations((600, 800), classes=CLASSES)
    for x in (50, 300, 550):
        annotations.fill_polygon([(100, x), (100, x + 150), (300, x + 150), (300, x)], 1, dense=True)
        annotations.paint([(200, x + 20), (200, x + 120)], 20, 2)
    source = on_white(annotations)
    held_out = HeldOut(seed=0)
    held_out.update([source], TABLE)
    whole = Box(0, 0, 600, 800)
    held = held_out.exclude[0]
    assert any(u.stroke.kind == "dense" for u in held)
    train, test = training_labels(source, whole, held), held_labels(source, whole, held)
    assert {1, 2} <= set(np.unique(train))
    assert {1, 2} <= set(np.unique(test))
    assert not ((train > 0) & (test > 0)).any()


def test_few_dense_slides_are_held_out_last_and_given_back_when_declared():
    """Two of five slides have a dense region: whatever the seed, strokes are held out; of a slide that gets one too."""
    annotated = [many_strokes() for _ in range(5)]
    slides = [ArraySlide(np.full((600, 800, 3), 255, np.uint8)) for _ in annotated]

    def update(held_out):
        held_out.update([on_white(a, slide=s) for a, s in zip(annotated, slides, strict=True)], TABLE)
        return set(held_out.exclude)

    def declare(k):
        annotated[k].fill_polygon([(0, 500), (0, 790), (500, 790), (500, 500)], 1, dense=True)

    held = [HeldOut(seed=k) for k in range(8)]
    assert len({tuple(update(h)) for h in held}) > 1
    (first,) = update(held[0])
    declare(first)
    for h in held:
        assert first not in update(h)
    declare(next(k for k in range(5) if k != first))
    for h in held:
        for _ in range(4):
            assert not any(annotated[k].snapshot().dense_regions for k in update(h))
            h.swap()


def test_one_of_two_dense_regions_beside_strokes_stays_in_training():
    annotations = many_strokes()
    for x in (300, 550):
        annotations.fill_polygon([(300, x), (300, x + 150), (500, x + 150), (500, x)], 1, dense=True)
    for seed in range(8):
        held_out = HeldOut(seed=seed)
        held_out.update([on_white(annotations)], TABLE)
        assert {u.stroke.kind for u in held_out.exclude[0]} == {"brush"}


def test_the_spread_between_two_candidates_by_hand():
    """Three places: both are right on two; the odd one is right by the first candidate only."""
    right, wrong = np.array([[9, 0, 0], [0, 9, 0]]), np.array([[0, 9, 0], [9, 0, 0]])
    places = [(0, right, right), (1, right, right), (2, right, wrong)]
    # Without either of the first two, half of the pixels differ: Dice 1 and 0.5. Without the odd one nothing does.
    differences = np.array([0.5, 0.5, 0.0])
    expected = np.sqrt(2 / 3 * ((differences - differences.mean()) ** 2).sum())
    assert spread(places) == pytest.approx(expected)
    # The same windows on two slides are too few slides: then windows count.
    assert spread([(k % 2, a, b) for k, a, b in places]) == pytest.approx(expected)
    assert spread(places[:2]) == 0
    assert spread([(k, right, right) for k in range(5)]) == 0


def test_a_later_model_is_compared_with_the_one_served_and_doubt_is_its_favour():
    right, wrong = np.array([[9, 0, 0], [0, 9, 0]]), np.array([[0, 9, 0], [9, 0, 0]])
    schedule = ValidationSchedule()  # margin 0.05
    alike = [(k, right) for k in range(4)]
    assert schedule.accepts(0.9, alike)
    assert not schedule.accepts(0.84, alike)  # the same everywhere: no doubt beside the margin
    odd = [*alike[:3], (3, wrong)]
    assert spread([(k, right, b) for k, b in odd]) > 0.1
    assert schedule.accepts(0.8, odd)  # one odd place makes the difference
    assert schedule.accepts(0.77, odd)  # against the one served, not against the best
    assert not schedule.accepts(0.7, odd)
    assert schedule.stale == 4
    schedule.restart()
    assert schedule.accepts(0.1, alike[:1])


def test_nothing_drawn_holds_nothing_out():
    held_out = HeldOut()
    held_out.update([on_white(Annotations((600, 800), classes=CLASSES))], TABLE)
    assert held_out.exclude == {}
    assert held_out.windows() == ()
    scores = score(held_out, prediction_of(TABLE, lambda r, c: r))
    assert np.isnan(scores.balanced_dice)
    assert np.isnan(scores.calibration_error)
    assert scores.to_json()["balanced_dice"] is None


def test_same_seed_same_choice(source):
    def choose(seed):
        held_out = HeldOut(seed=seed)
        held_out.update([source], TABLE)
        return held_ids(held_out), [w.region for w in held_out.windows()]

    assert choose(3) == choose(3)
    assert len({str(choose(s)) for s in range(8)}) > 1


def test_mistakes_are_refused():
    with pytest.raises(TrainingError, match="between 0 and 1"):
        HeldOut(fraction=1.0)
    with pytest.raises(TrainingError, match=r"need \(3, 4, 4\)"):
        Scorer(TABLE).add(np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4), np.float32))
