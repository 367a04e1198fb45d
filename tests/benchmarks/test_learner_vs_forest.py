"""Ahead of the random forest on EBHI-Seg at every mark, by the stated ratio at the last; `bench_learner` measures."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.bench_learner import MARKS, TARGETS, publish, ratio, run

EVERYWHERE = 1.05


@pytest.mark.timeout(0)
def test_ahead_of_the_forest_at_every_mark() -> None:
    marks = (*MARKS, 20.0, 60.0)
    rows = run(3, marks)
    publish(rows, marks)
    ratios = {(c, m): ratio(rows, c, m) for c in TARGETS for m in marks}
    assert all(math.isfinite(r) and r >= EVERYWHERE for r in ratios.values()), ratios
    for classes, target in TARGETS.items():
        assert ratios[classes, marks[-1]] >= target, ratios
