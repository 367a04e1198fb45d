"""What two dense fields of fifteen are worth: strokes, strokes with two fields dense, all dense; how honest doubt is.

    python -m tests.benchmarks.few_dense --seeds 11 12 --tasks glands mosaics

`glands`: fifteen mosaics of four EBHI-Seg fields of one lesion each, as large as the fields of other gland sets;
judged on fields of other cases. `mosaics`: pictures of four to six of the seven tissues of CRC-VAL-HE-7K with winding
borders, from tiles that the judged pictures do not have. Every run has the same number of steps, for a step costs the
same whatever the labels; with ``--labels "strokes, forest"`` a random forest learns from the same strokes. The
calibration error is that of the model served, over all pixels of the pictures judged.
Finished runs are kept in ``few-dense.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from imageio.v3 import imread
from scipy import ndimage

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.geometry import Box
from napari_sparseseg.metrics import calibration_counts, expected_calibration_error
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.benchmarks import common
from tests.benchmarks.forest import Forest
from tests.helpers.data import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.learning.model import Model

Row = dict[str, Any]
FIELDS, DENSE = 15, 2
LABELS = ("strokes", "strokes + 2 dense", "dense")
FOREST = "strokes, forest"
TISSUES = ("ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
"""Of CRC-VAL-HE-7K; debris is left out, its colours are damaged."""
COLUMNS = (
    "dice", "of dense", "error", "error at 1", "temperature", "unsure_below", "sure", "right where sure", "share",
)  # fmt: skip
_SIDE, _TILE = 448, 224


def glands(seed: int) -> common.Task:
    """Gland and background on mosaics of EBHI-Seg."""
    seven, two = common.ebhi(7, seed), common.ebhi(2, seed)
    lesions = [int(f.truth.max()) for f in seven.train]
    rng = np.random.default_rng(seed)
    order = sorted(range(len(lesions)), key=lambda i: (lesions[i], rng.random()))[: 4 * FIELDS]
    train = [_together([two.train[i] for i in order[k : k + 4]]) for k in range(0, len(order) - 3, 4)]
    shuffled = tuple(train[i] for i in rng.permutation(len(train)))
    return common.Task("glands", shuffled, two.test[::2], ("background", "gland"), 1.0, 2, 100, 4, 0, (1, 2), 2)


def _together(four: Sequence[common.Field]) -> common.Field:
    return common.Field(_square([f.image for f in four]), _square([f.truth for f in four]))


def _square(four: Sequence[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(four[k : k + 2], axis=1) for k in (0, 2)]
    return np.ascontiguousarray(np.concatenate(rows))


def mosaics(seed: int) -> common.Task:
    """Seven tissues; training and judged pictures are made of different tiles."""
    rng = np.random.default_rng(seed)
    halves: tuple[list[list[np.ndarray]], list[list[np.ndarray]]] = ([], [])
    for name in TISSUES:
        files = sorted((DATA / "crc7k").glob(f"{name}__*"))
        order = rng.permutation(len(files))
        for half, chosen in zip(halves, np.array_split(order, [len(files) // 2]), strict=True):
            half.append([imread(files[i])[..., :3] for i in chosen])
    train, test = (tuple(_mosaic(tiles, rng) for _ in range(n)) for tiles, n in zip(halves, (FIELDS, 8), strict=True))
    return common.Task("mosaics", train, test, TISSUES, 1.0, 3, 120, 8, 0, tuple(range(1, 8)), 7)


def _mosaic(tiles: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> common.Field:
    """Regions around random sites, their borders bent; each is filled with one tile of one tissue, mirrored on."""
    count = int(rng.integers(4, 7))
    sites = rng.uniform(0, _SIDE, (count, 2, 1, 1))
    bent = np.stack([ndimage.gaussian_filter(rng.normal(size=(_SIDE, _SIDE)), 24) for _ in range(2)])
    places = np.mgrid[:_SIDE, :_SIDE] + 30 * bent / bent.std()
    region = ((places - sites) ** 2).sum(1).argmin(0)
    image, truth = np.zeros((_SIDE, _SIDE, 3), np.uint8), np.zeros((_SIDE, _SIDE), np.uint8)
    for k, tissue in enumerate(rng.permutation(len(tiles))[:count]):
        tile = tiles[tissue][rng.integers(len(tiles[tissue]))]
        y, x = rng.integers(0, _TILE, 2)
        wide = np.pad(tile, ((0, 2 * _SIDE), (0, 2 * _SIDE), (0, 0)), mode="symmetric")[y : y + _SIDE, x : x + _SIDE]
        image[region == k], truth[region == k] = wide[region == k], tissue + 1
    return common.Field(image, truth)


TASKS: dict[str, Callable[[int], common.Task]] = {"glands": glands, "mosaics": mosaics}


def perform(task: str, labels: str, seed: int, steps: int) -> Row:
    """Train for so many steps and score what is then served."""
    given = TASKS[task](seed)
    annotations = common.sparse(given, np.random.default_rng([seed, 1]))
    if labels == FOREST:
        return _forest(given, annotations, {"task": task, "labels": labels, "seed": seed, "steps": steps})
    if labels != LABELS[0]:
        share = 1.0 if labels == LABELS[2] else DENSE / len(given.train)
        common.add_dense(given, annotations, share, np.random.default_rng([seed, 2]))
    learner = common.learner_for(given, annotations, TrainConfig(mpp=1.0, device="cpu", seed=seed))
    clock = common.Clock()
    learner.refit()
    while learner.step_count < steps or learner.pending:
        learner.step()
    with tempfile.TemporaryDirectory() as folder:
        learner.checkpoint(f"{folder}/last.safetensors")  # serves what the last steps brought
    took = clock()
    learner.stop_reading()
    found = {"dice": common.model_scores(given, learner.model)["mean"], **doubt(given, learner.model)}
    shown = {k: learner.metrics.get(k) for k in ("share", "temperature", "unsure_below")}
    return {"task": task, "labels": labels, "seed": seed, "steps": steps, "seconds": took, **found, **shown}


def _forest(task: common.Task, annotations: Sequence[Annotations], row: Row) -> Row:
    clock = common.Clock()
    known = [a.read((0, 0, *a.shape)) for a in annotations]
    forest = Forest(row["seed"]).fit([f.image for f in task.train], known)
    took = clock()
    return {**row, "seconds": took, "dice": common.scores(task, forest.predict)["mean"], **dict.fromkeys(COLUMNS[2:])}


def doubt(task: common.Task, model: Model) -> Row:
    """Calibration errors with the model's temperature and without; accuracy of what it is not unsure of, and share."""
    ids = np.array([c.id for c in model.metadata.classes], np.uint8)
    limit, own = model.metadata.metrics.get("unsure_below") or 0.0, model.net.temperature
    counts, sure, right, total = {}, 0, 0, 0
    for temperature in sorted({1.0, own}):
        model.net.temperature = temperature
        for picture in task.test:
            slide = ArraySlide(picture.image, mpp=1.0)
            values = predict_region(model, slide, Box(0, 0, *slide.shape), slide.frame(1.0))[1]
            confidence, hit = values.max(0), ids[values.argmax(0)] == picture.truth
            counts[temperature] = counts.get(temperature, 0) + calibration_counts(confidence, hit)
            if temperature == own:
                chosen = confidence >= limit
                sure, right, total = sure + chosen.sum(), right + hit[chosen].sum(), total + hit.size
    errors = {k: expected_calibration_error(v) for k, v in counts.items()}
    return {
        "error": errors[own], "error at 1": errors[1.0],
        "sure": float(sure / total), "right where sure": float(right / max(1, sure)),
    }  # fmt: skip


def publish(rows: Sequence[Row]) -> None:
    """A line per run, and the ratios to dense."""
    known = {(r["task"], r["seed"], r["labels"]): r["dice"] for r in rows}
    lines = []
    for r in rows:
        dense = known.get((r["task"], r["seed"], LABELS[2]))
        values = {**r, "of dense": r["dice"] / dense if dense else None}
        shown = ["" if values[k] is None else f"{values[k]:.3f}" for k in COLUMNS]
        lines.append([r["task"], str(r["seed"]), r["labels"], *shown, f"{r['seconds']:.0f}"])
    header = ["task", "seed", "labels", *COLUMNS, "CPU seconds"]
    text = f"# Two dense fields of {FIELDS}\n\n{common.markdown(header, lines)}"
    common.report("few-dense", text, list(rows))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--labels", nargs="+", choices=(*LABELS, FOREST), default=LABELS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", help="settings of one row, as JSON; prints it")
    given = parser.parse_args(argv)
    if given.one:
        common.torch.set_num_threads(1)
        print(json.dumps(perform(**json.loads(given.one))))
        return []
    settings = [
        {"task": t, "labels": x, "seed": s, "steps": given.steps}
        for s, t, x in product(given.seeds, given.tasks, given.labels)
    ]
    rows = common.rows_of("tests.benchmarks.few_dense", settings, common.RESULTS / "few-dense.jsonl", given.workers)
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
