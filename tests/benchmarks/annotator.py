"""A simulated annotator in the loop with the session: quality against annotation time, with and without "Next".

    python -m tests.benchmarks.annotator --strokes 10 --seeds 3
    python -m pytest tests/benchmarks/test_annotator.py -s

It begins with one stroke per class on a synthetic slide of 2 x 2 mm with a class that has a hundredth of the area, then
draws a stroke, lets the session train for some steps, and looks again. Where it draws is the policy:

* ``next``: in the region that `Session.next_region` suggests;
* ``wander``: in a view anywhere on the tissue, as somebody without guidance who looks around;
* ``worst``: in the worst view of the whole slide. Nobody knows it without the truth: an upper limit.

In the view it strokes the class that is wrong most, inside its largest wrong patch. The person: `SECONDS` says how long
each act takes; a stroke is drawn at `SPEED` screen pixels a second at 1:1, as in RootPainter's simulated benchmark a
constant mouse rate.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.geometry import Box
from napari_sparseseg.metrics import confusion
from napari_sparseseg.session import Session
from napari_sparseseg.slides.arrays import ArraySlide
from tests.benchmarks import common
from tests.benchmarks.strokes import depth_inside, stroke

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICIES = ("next", "wander", "worst")
SECONDS = {"next": 2.0, "wander": 4.0, "worst": 4.0, "decide": 1.5, "class": 1.0}
"""To get to the view (one click, or pan and zoom), to see what is wrong there, to choose the class."""
SPEED = 300.0
VIEW = 512
"""Side of what the annotator sees, level-0 pixels: the size of a suggestion at 1 um per pixel."""
SIDE, IMBALANCE = 4096, 100
"""Of the slide, level-0 pixels at 0.5 um: 64 views; area of a common class over that of the rare one."""
LEAST_WRONG = 100
"""Level-0 pixels; a view that is less wrong is left without a stroke, but its time is spent."""


@dataclass
class Annotator:
    """A hand with a truth to look at."""

    task: common.Task
    policy: str
    seed: int
    seconds: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 3])
        self.truth = self.task.train[0].truth
        self.depths = {c: depth_inside(self.truth == c) for c in np.unique(self.truth).tolist()}

    def begin(self, session: Session) -> None:
        """One stroke per class."""
        for class_id in self.depths:
            self.draw(session, class_id, None)

    def correct(self, session: Session, found: np.ndarray) -> bool:
        """Go to a view and stroke what is wrong in the prediction at 1 um per pixel; whether there was anything."""
        predicted = np.kron(found, np.ones((2, 2), np.uint8))[: self.truth.shape[0], : self.truth.shape[1]]
        wrong = predicted != self.truth
        view = self.view(session, wrong)
        self.seconds += SECONDS[self.policy] + SECONDS["decide"]
        inside = np.zeros_like(wrong)
        inside[view.slices()] = wrong[view.slices()]
        missed = np.bincount(self.truth[inside], minlength=len(self.task.classes) + 1)
        class_id = int(missed.argmax())
        if missed[class_id] < LEAST_WRONG:
            return False
        patches, count = ndimage.label(inside & (self.truth == class_id))
        largest = patches == 1 + int(np.argmax(np.bincount(patches.ravel(), minlength=count + 1)[1:]))
        at = np.unravel_index(int(np.argmax(np.where(largest, self.depths[class_id], -1))), wrong.shape)
        self.seconds += SECONDS["class"]
        return self.draw(session, class_id, (float(at[0]), float(at[1])))

    def view(self, session: Session, wrong: np.ndarray) -> Box:
        """Where the annotator looks, cut to the slide."""
        h, w = wrong.shape
        whole = Box(0, 0, h, w)
        if self.policy == "next":
            suggestion = session.next_region()
            if suggestion is not None:
                return suggestion.box.intersection(whole)
        cells = [Box(y, x, VIEW, VIEW).intersection(whole) for y in range(0, h, VIEW) for x in range(0, w, VIEW)]
        if self.policy == "worst":
            return max(cells, key=lambda c: int(wrong[c.slices()].sum()))
        glass = len(self.task.classes)
        tissue = [c for c in cells if (self.truth[c.slices()] != glass).any()]
        return tissue[self.rng.integers(len(tissue))]

    def draw(self, session: Session, class_id: int, start: tuple[float, float] | None) -> bool:
        """One stroke of a class; whether the brush fitted."""
        points = stroke(self.depths[class_id], self.rng, radius=self.task.brush, length=self.task.length, start=start)
        if points is None:
            return False
        session.annotations.paint(points + 0.5, self.task.brush, class_id)
        self.seconds += float(np.hypot(*np.diff(points, axis=0).T).sum()) / SPEED
        return True


def predict(session: Session) -> np.ndarray:
    """Class ids of the whole slide at 1 um per pixel."""
    return session.predict((0, 0, *session.slide.shape), mpp=1.0)[0]


def run(policy: str, seed: int, strokes: int, steps: int) -> list[dict[str, Any]]:
    """One annotator; a row per round: person's seconds, strokes, Dice on this slide; at the end on another one too."""
    task = common.synthetic(IMBALANCE, seed, SIDE, train=1, test=1)
    hand, clock, rows = Annotator(task, policy, seed), common.Clock(), []
    truth = task.train[0].truth[1::2, 1::2]
    ids = list(range(1, len(task.classes) + 1))
    with Session(make_classes(task.classes), config=TrainConfig(mpp=1.0, seed=seed, device="cpu")) as session:
        session.add(ArraySlide(task.train[0].image, mpp=task.mpp, name="slide"))
        hand.begin(session)
        for turn in range(strokes + 1):
            session.train(steps=steps, wait=True)
            found = clock.pause(lambda: predict(session))
            scores = common.scores_of(task, confusion(truth, found, ids))
            row = {"policy": policy, "seed": seed, "round": turn, "person": hand.seconds, "computer": clock()}
            row |= {"strokes": len(session.annotations.strokes), "here": scores["mean"], "rare": scores["rare"]}
            rows.append(row)
            if turn < strokes:
                hand.correct(session, found)
        rows[-1]["elsewhere"] = common.model_scores(task, session.model)["mean"]
    return rows


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Curves against the person's time, and a table at the end and half-way."""
    axes, save = common.figure("annotator", 2)
    keys = {"here": "tissue classes, mean", "rare": "rare class"}
    lines = []
    turns = max(r["round"] for r in rows)
    for policy, colour in zip(POLICIES, ("#0072b2", "#d55e00", "#999999"), strict=True):
        own = [r for r in rows if r["policy"] == policy]
        by_turn = [[r for r in own if r["round"] == t] for t in range(turns + 1)]
        if not own:
            continue
        for axis, key in zip(axes, keys, strict=True):
            axis.errorbar(
                [np.mean([r["person"] for r in part]) for part in by_turn],
                [np.mean([r[key] for r in part]) for part in by_turn],
                [np.std([r[key] for r in part]) for part in by_turn],
                color=colour, marker="o", ms=3, capsize=2, label=policy,
            )  # fmt: skip
            axis.set(title=keys[key], ylim=(0, 1))
            axis.set_xlabel("seconds of the annotator")
        for t in sorted({0, turns // 2, turns}):
            part = by_turn[t]
            lines.append(
                [policy, str(t), *(f"{np.mean([r[k] for r in part]):.0f}" for k in ("strokes", "person", "computer"))]
                + [
                    f"{np.mean([r[k] for r in part]):.3f} ± {np.std([r[k] for r in part]):.3f}"
                    for k in ("here", "rare")
                ]
                + ([f"{np.mean([r['elsewhere'] for r in part]):.3f}"] if t == turns else [""])
            )
    axes[0].set_ylabel("Dice on the slide")
    axes[0].legend(frameon=False)
    save()
    header = [
        "policy",
        "corrections",
        "strokes",
        "person, s",
        "computer, s",
        "Dice",
        "rare class",
        "Dice on another slide",
    ]
    common.report(
        "annotator", "\n\n".join(["# Simulated annotator", common.markdown(header, lines), _attacks(rows)]), rows
    )


def _attacks(rows: Sequence[dict[str, Any]]) -> str:
    last = max(r["round"] for r in rows)
    final = {(r["policy"], r["seed"]): r for r in rows if r["round"] == last}
    seeds = sorted({s for _, s in final})
    pairs = [(final["next", s], final["wander", s]) for s in seeds if ("next", s) in final and ("wander", s) in final]
    said = [
        "Does the clock decide? With the same number of corrections, Next - wander on this slide is "
        + ", ".join(f"{a['here'] - b['here']:+.3f}" for a, b in pairs)
        + f" (seed by seed); the person's times are assumed ({SECONDS}), not measured.",
        "Does the labelled slide flatter? Strokes are part of what is scored 'here', some percent; 'another slide' "
        "has none.",
        "Is the hand too good? It never strokes the wrong class; people do, with every policy.",
    ]
    return "## Attacks, and their outcome\n\n" + "\n".join(f"- {s}" for s in said)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, default=10, help="corrections after the first stroke per class")
    parser.add_argument("--steps", type=int, default=10, help="of training after each stroke")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    given = parser.parse_args(argv)
    rows = []
    for seed in range(given.seeds):
        for policy in given.policies:
            rows += run(policy, seed, given.strokes, given.steps)
            print(rows[-1], flush=True)
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
