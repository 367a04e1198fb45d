"""Mean Dice of our learner after 3, 10 and 60 s against the random forest, from the same strokes; issue 5's numbers.

    python -m tests.benchmarks.test_learner_vs_forest --seeds 3
    python -m pytest tests/benchmarks/test_learner_vs_forest.py -s

Seconds are CPU seconds per thread, from the labels on; the forest's count its features and trees, and its Dice is what
it has when it is ready. Predicting the test fields counts for neither.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.benchmarks import bench_learner, common
from tests.benchmarks.forest import Forest
from tests.conftest import real_data

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKS = (3.0, 10.0, 60.0)
TARGETS = {2: 1.15, 7: 1.6}
ATTACKS = (
    "Same strokes? Both draw them from the same generator and seed, fields in the same order.",
    "A forest badly set up? Its settings (sigma 1 to 16, 100 trees, depth 20, balanced) were not searched: open; the "
    "forest is scored when it is ready, however late that is, and loses nothing by being slow.",
    "Leak? Split by case; `test_study.py` looks for cases and pictures on both sides.",
    "The same threads for both (see the last line); a GPU or more cores would move both.",
)


def forest_run(fields: bench_learner.Fields, seed: int) -> tuple[float, float]:
    """(seconds until ready, mean Dice) of the forest."""
    train, test = bench_learner.split(fields.cases, seed)
    rng = np.random.default_rng(seed)
    strokes = [bench_learner.scribble(fields.labels[i], fields.classes, rng).read((0, 0, 224, 224)) for i in train]
    clock = bench_learner.Clock()
    forest = Forest(seed, torch.get_num_threads()).fit([fields.images[i] for i in train], strokes)
    seconds = clock()
    found = np.stack([forest.predict(fields.images[i]) for i in test])
    return seconds, bench_learner.mean_dice(fields.labels[test].astype(int), found, fields.classes)


def run(seeds: int, marks: Sequence[float]) -> list[dict[str, Any]]:
    """A row per number of classes and seed."""
    seven = bench_learner.load(real_data("ebhi_seg"))
    rows = []
    for fields in (seven.two_classes(), seven):
        for seed in range(seeds):
            ready, dice = forest_run(fields, seed)
            curve = bench_learner.learner_curve(fields, seed, list(marks))
            rows.append(
                {"classes": fields.classes, "seed": seed, "forest": dice, "forest seconds": ready, "ours": curve}
            )
            print(rows[-1], flush=True)
    return rows


def ratio(rows: Sequence[dict[str, Any]], classes: int, mark: float) -> float:
    """Mean over seeds of ours over that of the forest."""
    own = [r for r in rows if r["classes"] == classes]
    return float(np.mean([r["ours"][mark] for r in own]) / np.mean([r["forest"] for r in own]))


def publish(rows: Sequence[dict[str, Any]], marks: Sequence[float]) -> None:
    lines = []
    axes, save = common.figure("learner-vs-forest", 2)
    for axis, classes in zip(axes, (2, 7), strict=True):
        own = [r for r in rows if r["classes"] == classes]
        line = [
            str(classes),
            f"{_spread([r['forest'] for r in own])} ({np.mean([r['forest seconds'] for r in own]):.0f} s)",
        ]
        line += [f"{_spread([r['ours'][m] for r in own])} ({ratio(rows, classes, m):.2f}x)" for m in marks]
        lines.append(line)
        for r in own:
            axis.plot(marks, [r["ours"][m] for m in marks], "o-", color="#0072b2", ms=4)
            axis.plot([r["forest seconds"], max(marks)], [r["forest"]] * 2, color="#d55e00", ls="--")
        axis.set(xscale="log", ylim=(0, 1), title=f"{classes} classes", xlabel="CPU seconds, one thread")
    axes[0].set_ylabel("mean Dice, other cases; a line per seed")
    axes[0].plot([], [], "o-", color="#0072b2", label="ours")
    axes[0].plot([], [], "--", color="#d55e00", label="random forest")
    axes[0].legend(frameon=False)
    save()
    header = ["classes", "random forest (ready after)", *(f"ours, {m:.0f} s" for m in marks)]
    text = "# Learner against random forest, EBHI-Seg by case\n\n" + common.markdown(header, lines)
    text += "\n\n## Attacks, and their outcome\n\n" + "\n".join(f"- {a}" for a in ATTACKS)
    common.report("learner-vs-forest", text, rows)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


@pytest.mark.timeout(0)
def test_ahead_of_the_forest_at_every_mark() -> None:
    rows = run(3, MARKS)
    publish(rows, MARKS)
    ratios = {(c, m): ratio(rows, c, m) for c in TARGETS for m in MARKS}
    assert min(ratios.values()) >= 1.0, ratios
    for classes, target in TARGETS.items():
        assert ratios[classes, MARKS[-1]] >= target, ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--marks", type=float, nargs="+", default=list(MARKS))
    given = parser.parse_args()
    publish(run(given.seeds, given.marks), given.marks)
