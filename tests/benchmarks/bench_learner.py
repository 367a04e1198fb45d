"""Mean Dice against time from simulated strokes, against a random forest on multiscale filters.

Real fields with dense masks (EBHI-Seg), split by case; two strokes per class and field, radius 2 px. Run one of::

    python -m pytest tests/benchmarks/bench_learner.py -s
    python -m tests.benchmarks.bench_learner --seeds 3 --seconds 60

Seconds are CPU seconds of this process divided by torch's threads, so that a busy machine does not change the result.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from imageio.v3 import imread
from scipy import ndimage

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.inference import labels_from
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.slides.arrays import ArraySlide
from tests.conftest import real_data

if TYPE_CHECKING:
    from pathlib import Path

RADIUS, STEPS, STROKES = 2, 50, 2
AROUND = 48


@dataclass(frozen=True)
class Fields:
    """Images (N, 224, 224, 3), labels (N, 224, 224) with values 1..K, and the case of each."""

    images: np.ndarray
    labels: np.ndarray
    cases: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.labels.max())

    def two_classes(self) -> Fields:
        """Background and gland."""
        return Fields(self.images, np.minimum(self.labels, 2), self.cases)


def load(folder: Path) -> Fields:
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    images = np.stack([imread(folder / r["image"]) for r in rows])
    labels = np.stack([imread(folder / r["mask"]) for r in rows]) + 1
    cases = [re.search(r"__GT[A-Za-z]*(\d+)", r["image"]).group(1) for r in rows]
    return Fields(images, labels.astype(np.uint8), np.array(cases))


def split(cases: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of about half of the fields for training, and of the rest; no case is in both."""
    names = np.random.default_rng(seed).permutation(np.unique(cases))
    sizes = np.cumsum([(cases == n).sum() for n in names])
    training = np.isin(cases, names[: np.searchsorted(sizes, len(cases) / 2) + 1])
    return np.flatnonzero(training), np.flatnonzero(~training)


def walk(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A stroke that stays inside and prefers the distance from the border, (n, 2) points."""
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    starts = np.argwhere(depth > RADIUS + 1)
    if not len(starts):
        return None
    at, heading = starts[rng.integers(len(starts))].astype(float), rng.uniform(0, 2 * np.pi)
    points = [at]
    for _ in range(STEPS):
        headings = heading + rng.normal(0, 0.6, 6)
        ahead = at + 2 * np.stack([np.sin(headings), np.cos(headings)], 1)
        cells = np.rint(ahead).astype(int).clip(0, np.array(inside.shape) - 1)
        room = depth[cells[:, 0], cells[:, 1]]
        if room.max() <= RADIUS + 0.5:
            break
        best = int(np.argmax(room + rng.uniform(0, 1, 6)))
        at, heading = ahead[best], headings[best]
        points.append(at)
    return np.clip(np.array(points), 0, np.array(inside.shape) - 1)


def scribble(labels: np.ndarray, classes: int, rng: np.random.Generator) -> Annotations:
    out = Annotations(labels.shape, classes=[f"class {k}" for k in range(1, classes + 1)])
    for class_id in np.unique(labels):
        inside = labels == class_id
        if inside.sum() < 200:
            continue
        for _ in range(STROKES):
            points = walk(inside, rng)
            if points is not None:
                out.paint(points + 0.5, RADIUS, int(class_id))
    return out


def mean_dice(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    counts = np.bincount(truth.ravel() * 256 + predicted.ravel(), minlength=256 * 256).reshape(256, 256)
    found = [2 * counts[k, k] / max(1, counts[k].sum() + counts[:, k].sum()) for k in range(1, classes + 1)]
    return float(np.mean(found))


class Clock:
    """Seconds of this process per thread of torch, without what was excluded."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def __call__(self) -> float:
        return (time.process_time() - self._start) / torch.get_num_threads()

    def exclude(self, work):
        before = time.process_time()
        result = work()
        self._start += time.process_time() - before
        return result


def learner_curve(fields: Fields, seed: int, seconds: list[float]) -> dict[float, float]:
    """Mean Dice on the test cases when the first model is there (key 0) and after each of `seconds`."""
    train, test = split(fields.cases, seed)
    rng = np.random.default_rng(seed)
    annotated = {i: scribble(fields.labels[i], fields.classes, rng) for i in train}
    slides = {i: ArraySlide(fields.images[i], mpp=1.0, name=f"field {i}") for i in range(len(fields.cases))}
    frame = Frame()

    def score(model) -> float:
        region = Box(0, 0, 224, 224)
        grown = Box(-AROUND, -AROUND, 224 + 2 * AROUND, 224 + 2 * AROUND)
        out = []
        for i in test:
            p = model.probabilities(slides[i].read_region(grown, frame), origin=(grown.y, grown.x))
            out.append(
                labels_from(p[:, AROUND : AROUND + region.height, AROUND : AROUND + region.width], model.recipe.classes)
            )
        return mean_dice(fields.labels[test].astype(int), np.stack(out), fields.classes)

    clock, curve = Clock(), {}
    learner = Learner(TrainConfig(mpp=1.0, seed=seed, device="cpu"), annotated[train[0]].classes)
    learner.set_sources([Source(slides[i], annotated[i].snapshot(), frame) for i in train])
    model = learner.refit()
    while learner.pending:
        learner.step()
    model = learner.model
    print(f"  seed {seed} {fields.classes} classes: first model after {clock():.1f} s", flush=True)
    curve[0.0] = clock.exclude(lambda: score(model))
    for end in seconds:
        while clock() < end:
            report = learner.step()
            if report.validation:
                print(f"  step {report.step} {clock():.0f} s {report.validation['shares']}", flush=True)
        curve[end] = clock.exclude(lambda: score(learner.model))
    print(f"  seed {seed} {fields.classes} classes: {learner.step_count} steps, {curve}", flush=True)
    return curve


def forest_dice(fields: Fields, seed: int) -> float:
    """A random forest on scikit-image's multiscale features, from the same strokes."""
    from skimage.feature import multiscale_basic_features
    from sklearn.ensemble import RandomForestClassifier

    train, test = split(fields.cases, seed)
    rng = np.random.default_rng(seed)
    rows, classes = [], []
    for i in train:
        strokes = scribble(fields.labels[i], fields.classes, rng).read((0, 0, 224, 224))
        features = multiscale_basic_features(fields.images[i], channel_axis=-1, sigma_min=1, sigma_max=16)
        rows.append(features[strokes > 0])
        classes.append(strokes[strokes > 0])
    forest = RandomForestClassifier(100, max_depth=20, class_weight="balanced", n_jobs=-1, random_state=seed)
    forest.fit(np.concatenate(rows), np.concatenate(classes))
    out = []
    for i in test:
        features = multiscale_basic_features(fields.images[i], channel_axis=-1, sigma_min=1, sigma_max=16)
        out.append(forest.predict(features.reshape(-1, features.shape[-1])).reshape(224, 224))
    return mean_dice(fields.labels[test].astype(int), np.stack(out), fields.classes)


def table(
    folder: Path, seeds: int, seconds: list[float], *, forest: bool = True
) -> dict[tuple[int, float | str], float]:
    """Mean over seeds, by (number of classes, seconds or "forest")."""
    seven = load(folder)
    out: dict[tuple[int, float | str], float] = {}
    for fields in (seven.two_classes(), seven):
        curves = [learner_curve(fields, seed, seconds) for seed in range(seeds)]
        for key in curves[0]:
            out[fields.classes, key] = float(np.mean([c[key] for c in curves]))
        if forest:
            out[fields.classes, "forest"] = float(np.mean([forest_dice(fields, seed) for seed in range(seeds)]))
    return out


@pytest.mark.slow
def test_learner_is_ahead_of_the_forest() -> None:
    found = table(real_data("ebhi_seg"), 3, [60.0])
    print(found)
    assert found[2, 60.0] >= 1.15 * found[2, "forest"]
    assert found[7, 60.0] >= 1.6 * found[7, "forest"]
    assert found[2, 0.0] >= found[2, "forest"]
    assert found[7, 0.0] >= found[7, "forest"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 60.0])
    parser.add_argument("--no-forest", action="store_true")
    arguments = parser.parse_args()
    for key, value in table(
        real_data("ebhi_seg"), arguments.seeds, arguments.seconds, forest=not arguments.no_forest
    ).items():
        print(*key, f"{value:.3f}")
