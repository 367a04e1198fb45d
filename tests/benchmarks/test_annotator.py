"""`python -m pytest tests/benchmarks/test_annotator.py -s`: the hand strokes what is wrong; correcting helps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.geometry import Box
from tests.benchmarks import annotator, common
from tests.benchmarks.strokes import depth_inside


def scene(policy: str) -> tuple[annotator.Annotator, SimpleNamespace]:
    """Class 2 on the right half, class 1 on the left; Next points at the lower right."""
    truth = np.ones((1024, 1024), np.uint8)
    truth[:, 512:] = 2
    task = common.Task("", (common.Field(truth, truth),), (), ("a", "b", "glass"), 0.5, 6, 160, 2, 0, (1, 2), 2)
    depths = {c: depth_inside(truth == c).astype(np.float32) for c in (1, 2)}
    session = SimpleNamespace(
        annotations=Annotations(truth.shape, classes=["a", "b", "glass"]),
        next_region=lambda: SimpleNamespace(box=Box(512, 512, 512, 512)),
    )
    return annotator.Annotator(task, policy, 0, depths), session


def predicted(labels: np.ndarray):
    return lambda box: labels[box.slices()]


@pytest.mark.parametrize(("policy", "y", "seconds"), [("next", 512, 2.0), ("worst", 0, 4.0)])
def test_the_hand_strokes_the_missed_class_where_the_policy_says(policy: str, y: int, seconds: float) -> None:
    hand, session = scene(policy)
    found = np.ones((1024, 1024), np.uint8)
    found[700:1000, 700:1000] = found[600:650, 600:650] = 2  # the upper right view is wrong all over, the lower in part
    assert hand.correct(session, predicted(found))
    ys, xs = np.nonzero(session.annotations.read((0, 0, 1024, 1024)) == 2)
    assert len(ys) > 1000
    assert xs.min() >= 512
    assert abs(ys.mean() - (y + 256)) < 256
    stroked = seconds + annotator.SECONDS["decide"] + annotator.SECONDS["class"]
    assert stroked < hand.seconds <= stroked + 160 / annotator.SPEED


def test_a_view_that_is_right_costs_time_and_no_stroke() -> None:
    hand, session = scene("wander")
    assert not hand.correct(session, predicted(hand.truth))
    assert hand.seconds == annotator.SECONDS["wander"] + annotator.SECONDS["decide"]
    assert not session.annotations.strokes


def test_next_is_compared_with_wandering_after_as_many_seconds() -> None:
    given = [("next", 0, 2, 0.5), ("next", 10, 50, 0.8), ("wander", 0, 2, 0.5), ("wander", 5, 40, 0.6)]
    given.append(("wander", 10, 80, 0.8))
    rows = [{"policy": p, "seed": 3, "round": t, "person": s, "here": dice} for p, t, s, dice in given]
    assert annotator.when_next_ends(rows, 3) == pytest.approx(0.8 - 0.65)


@pytest.mark.timeout(0)
def test_corrections_help() -> None:
    rows = annotator.main(["--strokes", "6", "--seeds", "0"])
    for policy in annotator.POLICIES:
        first, last = (next(r["here"] for r in rows if r["policy"] == policy and r["round"] == t) for t in (0, 6))
        assert last > first, policy
