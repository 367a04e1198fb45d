"""Dice against the person's seconds: brush, snap brush, superpixels, and a wand like QuPath's, on real tissue.

    python -m tests.benchmarks.hand_tools                            # 6 seeds, 3 sets: 25 CPU minutes
    python -m tests.benchmarks.hand_tools --seeds 0 --sets glands    # 1 CPU minute
    python -m tests.benchmarks.hand_tools --noise 6                  # a hand that is off by 6 px (standard deviation)

A simulated person with a truth to look at labels one picture: first an act for each class, then the class that is wrong
most, inside its largest wrong patch. After every act the head is fitted anew (no decoder); Dice is that on pictures of
other cases or tiles. All tools start at the same kind of place and choose the same way; an act of theirs costs:

* all: find the place, see what is wrong, choose the class (`FIND`, the annotator's times);
* brush: the length of the stroke at `SPEED`;
* snap: `LOOK` for the outline and for each notch of the wheel; the person turns it down until at most `EYE` of the
  outlined pixels are wrong, or up while that holds; where no notch will do, a stroke of the brush instead;
* superpixels: the drag, as long as the brush's, and `MEND` for each of the patches that are mostly wrong (Shift+click);
* wand: the drag; where more than a tenth is wrong, `MEND` for the undo and a stroke of the brush instead.

The wand is our own and follows what QuPath's documentation says of its default: in a window of 149 px around the
pointer, blurred with sigma 4, it takes the connected pixels that are within half a standard deviation of the window's
colours of the pixel under the pointer, closes holes, and joins what it takes along the drag. It was not compared with
QuPath itself. *Predicted regions* are not among the tools: a person who only accepts what is right teaches little, see
`SECONDS` in `annotator.py` for one who corrects.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from napari_sparseseg import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.prediction.snap import TOLERANCE, Snapper, Surroundings
from napari_sparseseg.prediction.superpixels import Scale, Superpixels, along
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.benchmarks import common, few_dense
from tests.benchmarks.strokes import depth_inside, stroke

if TYPE_CHECKING:
    from collections.abc import Sequence

    Mask = np.ndarray

TOOLS = ("brush", "snap", "superpixels", "wand")
FIND = 2.0 + 1.5 + 1.0
SPEED, LOOK, CLICK, MEND = 300.0, 0.4, 0.3, 0.8
EYE = 0.03
RADIUS, LENGTH = 5.0, 100.0
NOTCHES, NOTCH = 5, 1.15
REACH = 120
WINDOW, BLUR = 149, 4.0
ACTS = 12
PICTURES, JUDGED = 3, 16


def task_of(name: str, seed: int) -> common.Task:
    """One of the sets."""
    if name == "mosaics":
        return few_dense.mosaics(seed)
    if name == "glands":
        return few_dense.glands(seed)
    task, rng = common.ebhi(7, seed), np.random.default_rng(seed)
    train, test = (tuple(half[i] for i in rng.permutation(len(half))) for half in (task.train, task.test))
    return common.Task(**{**vars(task), "train": train, "test": test})


def joined(fields: Sequence[common.Field], count: int) -> common.Field:
    """The first pictures side by side."""
    chosen = fields[:count]
    return common.Field(np.hstack([f.image for f in chosen]), np.hstack([f.truth for f in chosen]))


class Person:
    """A hand with a truth to look at, on one picture.

    Parameters
    ----------
    noise
        Standard deviation of where the hand comes down, pixels.
    """

    def __init__(self, picture: common.Field, tool: str, seed: int, noise: float) -> None:
        self.image, self.truth, self.tool, self.noise = picture.image, picture.truth, tool, noise
        self.rng = np.random.default_rng([seed, 7])
        self.slide = ArraySlide([picture.image], mpp=(1.0, 1.0), name="slide")
        self.cells = Superpixels(self.slide)
        self.depths = {c: depth_inside(self.truth == c) for c in np.unique(self.truth).tolist()}
        self.labels = np.zeros(self.truth.shape, np.uint8)
        self.seconds, self.tolerance = 0.0, TOLERANCE
        self.counts: dict[str, int] = {"taken": 0, "right": 0, "wheel": 0, "mended": 0, "brush instead": 0}

    def act(self, class_id: int, start: tuple[float, float] | None, chances: np.ndarray | None) -> bool:
        """Label something as a class; whether the brush fitted there."""
        path = stroke(self.depths[class_id], self.rng, radius=RADIUS, length=LENGTH, start=start)
        self.seconds += FIND
        if path is None:
            return False
        path = path + self.rng.normal(0, self.noise, 2) if self.noise else path
        path = np.clip(path, 0, np.array(self.truth.shape) - 1)
        taken = getattr(self, f"_{self.tool}")(path, class_id, chances)
        self.labels[taken] = class_id
        self.counts["taken"] += int(taken.sum())
        self.counts["right"] += int((self.truth[taken] == class_id).sum())
        return True

    def _brush(self, path: np.ndarray, class_id: int, chances: np.ndarray | None) -> Mask:
        self.seconds += CLICK + float(np.hypot(*np.diff(path, axis=0).T).sum()) / SPEED
        return self._disc(path)

    def _disc(self, path: np.ndarray) -> Mask:
        line = np.ones(self.truth.shape, bool)
        for y, x in along(path, (len(path),), 1.0):
            line[min(int(y), line.shape[0] - 1), min(int(x), line.shape[1] - 1)] = False
        mask: Mask = ndimage.distance_transform_edt(line) <= RADIUS
        return mask

    def _snap(self, path: np.ndarray, class_id: int, chances: np.ndarray | None) -> Mask:
        y, x = (int(v) for v in path[0])
        box = Box(y, x, 0, 0).grown(int(REACH + RADIUS)).intersection(Box(0, 0, *self.truth.shape))
        part = box.slices()
        dab = self._disc(path[:1])[part]
        seen = None if chances is None else chances[(slice(None), *part)]
        snapper = Snapper(Surroundings(self.image[part], self.labels[part], seen), dab, class_id)
        truth = self.truth[part] == class_id

        def wrong(tolerance: float) -> float:
            grown = snapper.grow(tolerance, REACH)
            return 1 - float(truth[grown].mean())

        self.seconds += LOOK
        step = NOTCH if wrong(self.tolerance) <= EYE else 1 / NOTCH
        best = self.tolerance if step > 1 else None
        for _ in range(NOTCHES):
            tried = min(max((best or self.tolerance) * step, 0.1), 1.2)
            self.seconds += LOOK
            self.counts["wheel"] += 1
            if wrong(tried) <= EYE:
                best = self.tolerance = tried
                if step < 1:
                    break
            elif step > 1:
                break
            else:
                self.tolerance = tried
        if best is None:
            self.counts["brush instead"] += 1
            return self._brush(path, class_id, chances)
        self.seconds += CLICK
        out = np.zeros(self.truth.shape, bool)
        out[part] = snapper.grow(best, REACH)
        return out

    def _superpixels(self, path: np.ndarray, class_id: int, chances: np.ndarray | None) -> Mask:
        self.seconds += CLICK + float(np.hypot(*np.diff(path, axis=0).T).sum()) / SPEED
        out = np.zeros(self.truth.shape, bool)
        for found in self.cells.crossed(Scale(0, 24), along(path, (len(path),), 0.5)):
            part = Box(found.y, found.x, *found.mask.shape).slices()
            if (self.truth[part][found.mask] == class_id).mean() > 0.5:
                out[part] |= found.mask
            else:
                self.seconds += MEND
                self.counts["mended"] += 1
        return out

    def _wand(self, path: np.ndarray, class_id: int, chances: np.ndarray | None) -> Mask:
        self.seconds += CLICK + float(np.hypot(*np.diff(path, axis=0).T).sum()) / SPEED
        out = np.zeros(self.truth.shape, bool)
        for y, x in path.astype(int).tolist():
            box = Box(y - WINDOW // 2, x - WINDOW // 2, WINDOW, WINDOW).intersection(Box(0, 0, *out.shape))
            smooth = ndimage.gaussian_filter(self.image[box.slices()].astype(np.float32), (BLUR, BLUR, 0))
            near = np.abs(smooth - smooth[y - box.y, x - box.x]) <= smooth.std(axis=(0, 1)) / 2
            marked, _ = ndimage.label(near.all(axis=2))
            mine = marked == marked[y - box.y, x - box.x]
            out[box.slices()] |= ndimage.binary_fill_holes(ndimage.binary_closing(mine, iterations=2))
        if (self.truth[out] == class_id).mean() >= 0.9:
            return out
        self.seconds += MEND
        self.counts["mended"] += 1
        return self._brush(path, class_id, chances)


def run(name: str, tool: str, seed: int, noise: float) -> list[dict[str, Any]]:
    """One person; a row for each act."""
    task = task_of(name, seed)
    picture = joined(task.train, 1 if name == "mosaics" else 12 if name == "lesions" else PICTURES)
    judged = common.Task(**{**vars(task), "test": task.test[: 3 if name == "mosaics" else JUDGED]})
    person = Person(picture, tool, seed, noise)
    learner = Learner(TrainConfig(mpp=1.0, seed=seed, device="cpu"), make_classes(task.classes), device="cpu")
    frame, rows = person.slide.frame(1.0), []
    whole = Box(0, 0, *picture.truth.shape)
    queue, chances = list(person.depths), None
    found = np.zeros_like(picture.truth)
    for turn in range(len(queue) + ACTS):
        if queue:
            class_id, start = queue.pop(0), None
        else:
            class_id, start = _worst(person, found)
        person.act(class_id, start, chances)
        if queue:
            continue
        annotations = Annotations(picture.truth.shape, make_classes(task.classes))
        for one in np.unique(person.labels[person.labels > 0]).tolist():
            annotations.begin_stroke(one, "fill")
            annotations.paint_mask(0, 0, 0, person.labels == one)
            annotations.commit_stroke()
        learner.set_sources([Source(person.slide, annotations.snapshot(), frame)])
        model = learner.refit()
        if model is None:
            continue
        found, chances = predict_region(model, person.slide, whole, frame)
        dice = common.model_scores(judged, model)["mean"]
        row = {"set": name, "tool": tool, "seed": seed, "noise": noise, "act": turn, "seconds": person.seconds}
        rows.append({**row, "dice": dice, **person.counts})
    return rows


def _worst(person: Person, found: np.ndarray) -> tuple[int, tuple[float, float]]:
    """The class that is wrong most and the deepest place of its largest wrong patch that is not labelled yet."""
    wrong = (found != person.truth) & (person.labels == 0)
    missed = np.bincount(person.truth[wrong], minlength=2)
    class_id = int(missed.argmax())
    patches, _ = ndimage.label(wrong & (person.truth == class_id))
    sizes = np.bincount(patches.ravel())
    sizes[0] = 0
    depth = np.where(patches == sizes.argmax(), person.depths[class_id], -1)
    at = np.unravel_index(int(depth.argmax()), depth.shape)
    return class_id, (float(at[0]), float(at[1]))


def dice_at(rows: Sequence[dict[str, Any]], seconds: float) -> float:
    """Dice of one person after so many seconds."""
    return float(np.interp(seconds, [r["seconds"] for r in rows], [r["dice"] for r in rows]))


def seconds_to(rows: Sequence[dict[str, Any]], dice: float) -> float:
    """When one person first has that Dice; twice the end where never."""
    return float(next((r["seconds"] for r in rows if r["dice"] >= dice), 2 * rows[-1]["seconds"]))


def publish(rows: Sequence[dict[str, Any]], name: str) -> None:
    """A line for each set and tool: against the brush of the same seed."""
    lines = []
    people: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for r in rows:
        people.setdefault((r["set"], r["tool"], r["seed"]), []).append(r)
    for kind in dict.fromkeys(r["set"] for r in rows):
        seeds = [s for s in sorted({r["seed"] for r in rows}) if all((kind, t, s) in people for t in TOOLS)]
        for tool in TOOLS if seeds else ():
            own = [people[kind, tool, s] for s in seeds]
            brush = [people[kind, "brush", s] for s in seeds]
            ends = [min(o[-1]["seconds"], b[-1]["seconds"]) for o, b in zip(own, brush, strict=True)]
            same = [dice_at(o, e) - dice_at(b, e) for o, b, e in zip(own, brush, ends, strict=True)]
            goal = [b[-1]["dice"] for b in brush]
            ratio = [seconds_to(o, g) / seconds_to(b, g) for o, b, g in zip(own, brush, goal, strict=True)]
            totals = {k: sum(o[-1][k] for o in own) for k in own[0][-1] if k in ("taken", "right", "wheel", "mended")}
            spread = np.std(same, ddof=1) if len(same) > 1 else 0.0
            lines.append([
                kind, tool, str(len(seeds)), f"{np.mean([o[-1]['seconds'] for o in own]):.0f}",
                f"{np.mean([o[-1]['dice'] for o in own]):.3f}", f"{np.mean(same):+.3f} ± {spread:.3f}",
                f"{np.median(ratio):.2f}", f"{totals['right'] / totals['taken']:.3f}",
                f"{totals['taken'] / len(own) / 1000:.1f}", f"{totals['wheel'] / len(own):.0f}",
                f"{totals['mended'] / len(own):.1f}",
            ])  # fmt: skip
    header = ["set", "tool", "seeds", "person, s", "Dice", "Dice - brush, same seconds"]
    header += ["share of the brush's seconds for its last Dice (median)", "labelled pixels that are right"]
    header += ["labelled, 1,000 px", "notches", "mended"]
    common.report(name, "# Tools of the hand\n\n" + common.markdown(header, lines), list(rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--sets", nargs="+", default=["glands", "mosaics", "lesions"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--noise", type=float, default=0.0, help="pixels that the hand is off")
    given = parser.parse_args(argv)
    common.torch.set_num_threads(1)
    name = "hand-tools" if not given.noise else f"hand-tools-noise{given.noise:g}"
    kept = common.RESULTS / f"{name}.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed in given.seeds:
        for kind in given.sets:
            for tool in given.tools:
                if not any((r["set"], r["tool"], r["seed"]) == (kind, tool, seed) for r in rows):
                    new = run(kind, tool, seed, given.noise)
                    rows += new
                    with kept.open("a") as file:
                        file.writelines(json.dumps(r) + "\n" for r in new)
        publish(rows, name)


if __name__ == "__main__":
    main()
