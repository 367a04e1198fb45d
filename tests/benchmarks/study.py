"""The study of the paper, and attacks on it: what could have made its numbers, other than what they claim.

    python -m tests.benchmarks.study                       # 80 minutes, two quiet cores
    python -m tests.benchmarks.study --grid full           # everything: three to four hours

Beside the runs of `study_balancing` there are three kinds of control: strokes with random classes (nothing can be
learned from them), strokes that follow borders, and a look for cases and pictures on both sides of the split.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import common, study_balancing

if TYPE_CHECKING:
    from collections.abc import Sequence

RANDOM, BORDER = "random classes", "border strokes"
TARGET = 0.97
ALIKE = 0.95
"""Correlation of two thumbnails above which two fields would be one picture."""
OPEN = (
    "Are seeds picked? They count from 0; every run made is in the tables; ± is their standard deviation.",
    "Does the mean flatter? Dice is per class over all test pixels together, then the plain mean; glass is left out; "
    "the rare class stands apart.",
    "Is `none` a fair opponent? A strong one: patches are drawn in turns of class and stroke whatever the balancing, "
    "so only the weights within a batch differ. Not measured: how `none` does without balanced drawing.",
    "Same steps are not the same seconds; those are in the JSON. Test pictures choose nothing: the learner decides "
    "on held-out strokes. The share of the best balancing in the last table, though, picks it by test score, for the "
    "dense runs as well; the ratio below does not pick.",
    "The synthetic tissue was drawn by the makers of the learner; EBHI-Seg was not. Where both disagree, trust "
    "EBHI-Seg.",
)


def control(name: str, kind: str, steps: int) -> dict[str, Any]:
    """One run with other strokes, and the run it is to be compared with."""
    task = study_balancing.task_for(name, 0)
    rng = np.random.default_rng([0, 1])
    fair, other = common.sparse(task, rng), common.sparse(task, np.random.default_rng([0, 1]), "border")
    if kind == RANDOM:
        other = _random_classes(task, fair)
    found = {}
    for key, drawn in (("fair", fair), ("other", other)):
        config = study_balancing.TrainConfig(mpp=1.0, device="cpu")
        learner = common.learner_for(task, drawn, config)
        learner.refit()
        while learner.step_count < steps or learner.pending:
            learner.step()
        found[key] = common.model_scores(task, learner.model)["mean"]
    return {"task": name, "kind": kind, "steps": steps, **found}


def _random_classes(task: common.Task, annotated: Sequence[Any]) -> list[Any]:
    rng = np.random.default_rng(0)
    out = []
    for old in annotated:
        new = common.Annotations(old.shape, classes=old.classes)
        for stroke in old.snapshot().strokes:
            new.paint(stroke.points, stroke.radius, int(rng.integers(1, len(task.classes) + 1)))
        out.append(new)
    return out


def overlap(seed: int) -> dict[str, Any]:
    """Pictures of EBHI-Seg on both sides of a split: the most alike pair, and cases by file name, read anew here."""
    task = common.ebhi(2, seed)
    a, b = (np.stack([_thumbnail(f.image) for f in part]) for part in (task.train, task.test))
    rows = (common.DATA / "ebhi_seg" / "manifest.csv").read_text().splitlines()[1:]
    case = {}
    for row in rows:
        name = row.split(",")[0]
        case[common.imread(common.DATA / "ebhi_seg" / name).tobytes()] = re.search(r"GT[A-Za-z]*(\d+)", name).group(1)
    cases = [{case[f.image.tobytes()] for f in part} for part in (task.train, task.test)]
    return {"seed": seed, "cases on both sides": sorted(cases[0] & cases[1]), "most alike": float((a @ b.T).max())}


def _thumbnail(image: np.ndarray) -> np.ndarray:
    small = image[:224, :224].mean(-1).reshape(32, 7, 32, 7).mean((1, 3)).ravel()
    small = small - small.mean()
    return small / np.linalg.norm(small)


def ratios(rows: Sequence[dict[str, Any]], few: str = "sparse+10") -> dict[tuple[str, str, str], list[float]]:
    """Mean Dice with a few dense labels over that of fully dense, seed by seed."""
    found = {(r["architecture"], r["task"], r["balancing"], r["labels"], r["seed"]): r["found"]["mean"] for r in rows}
    out: dict[tuple[str, str, str], list[float]] = {}
    for key, dense in found.items():
        fewer = found.get((*key[:3], few, key[4]))
        if key[3] == "dense" and fewer is not None:
            out.setdefault(key[:3], []).append(fewer / dense)
    return out


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Plain words about the target and the balancing."""
    out = []
    for (architecture, task, balancing), values in ratios(rows).items():
        word = "reached" if np.mean(values) >= TARGET else "**missed**"
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        out.append(
            f"{task}, {architecture}, {balancing}: sparse + 10 % dense is {np.mean(values):.3f}{spread} of fully dense "
            f"(target {TARGET}: {word})."
        )
    found = {(r["task"], r["architecture"], r["labels"], r["balancing"], r["seed"]): r["found"] for r in rows}
    for cell in dict.fromkeys(k[:3] for k in found):
        said = []
        for a, b in (("instance", "none"), ("mini-batch", "none"), ("instance", "mini-batch")):
            for key in ("mean", "rare"):
                pairs = [(found.get((*cell, a, s)), found.get((*cell, b, s))) for s in range(100)]
                d = [p[key] - q[key] for p, q in pairs if p and q]
                if d:
                    said.append(f"{a} - {b}, {key} {np.mean(d):+.3f} (up in {sum(x > 0 for x in d)} of {len(d)})")
        out.append(f"{', '.join(cell)}: {'; '.join(said)}.")
    return out


def attacks(
    rows: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    overlaps: Sequence[dict[str, Any]],
    more: dict[str, Sequence[dict[str, Any]]],
) -> list[str]:
    """Each attack with its outcome; `more`: rows of `study_balancing.again`."""
    served = [r["share"] for r in rows if r["architecture"] == "pretrained"]
    both = sorted({c for o in overlaps for c in o["cases on both sides"]})
    alike = max(o["most alike"] for o in overlaps)
    out = [
        f"Do cases leak? Cases of EBHI-Seg on both sides: {both or 'none'}. Most alike pair of a training and a test "
        f"field: correlation {alike:.2f} ({'different pictures' if alike < ALIKE else '**look at it**'}).",
        f"Did the network that was trained decide anything? {sum(s == 0 for s in served)} of {len(served)} runs ended "
        "with the fitted head alone; the others served the network in a share of at least "
        f"{min((s for s in served if s), default=0):.1f}.",
    ]
    for c in controls:
        question = (
            "Does anything but the strokes' classes teach?"
            if c["kind"] == RANDOM
            else "Are the strokes too well placed?"
        )
        out.append(
            f"{question} {c['task']}, {c['steps']} steps: {c['other']:.3f} with {c['kind']}, else {c['fair']:.3f}."
        )
    for name, again in more.items():
        for few in dict.fromkeys(r["labels"] for r in again if r["labels"] != "dense"):
            for (_, task, balancing), values in ratios(again, few).items():
                each = ", ".join(f"{v:.3f}" for v in values)
                out.append(
                    f"Three lucky seeds, too short, or other squares? {task}, {name}, {balancing}, {few}: "
                    f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} of fully dense ({each})."
                )
    return [*out, *OPEN]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=("smoke", "quick", "full"), default="quick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of every run, instead of the grid's own")
    given = parser.parse_args(argv)
    runs = study_balancing.grid(given.grid, given.seeds)
    if given.steps:
        runs = [replace(r, steps=given.steps) for r in runs]
    rows = study_balancing.run_all(runs, given.workers)
    again = study_balancing.again(given.seeds) if given.grid == "full" else {}
    more = {name: study_balancing.run_all(runs, given.workers) for name, runs in again.items()}
    common.torch.set_num_threads(1)
    tasks = list(dict.fromkeys(r.task for r in runs))
    steps = min(r.steps for r in runs)
    controls = [control(t, kind, steps) for t in tasks for kind in (RANDOM, BORDER)]
    overlaps = [overlap(s) for s in range(given.seeds)]
    text = "\n\n".join(
        [
            study_balancing.summary(rows),
            "## What it says\n\n" + "\n".join(f"- {v}" for v in verdicts(rows)),
            "## Attacks, and their outcome\n\n" + "\n".join(f"- {v}" for v in attacks(rows, controls, overlaps, more)),
        ]
    )
    found = {"runs": rows, "again": more, "controls": controls, "overlaps": overlaps}
    common.report(f"study-{given.grid}", text, found)
    study_balancing.draw(rows)
    return rows


if __name__ == "__main__":
    main()
