"""What the studies share: pictures with dense truth, ways to label them, a clock, training, scoring, reports."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from imageio.v3 import imread

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.metrics import confusion, dice, precision, recall
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from sample_data.tissue import render
from tests.benchmarks.strokes import Hand, depth_inside, stroke, strokes_per_class
from tests.helpers.data import DATA, ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(os.environ.get("SPARSESEG_RESULTS", ROOT.parent / "benchmark-results"))
"""Outside the repository unless the variable says otherwise."""
TISSUE = ("tumour glands", "stroma", "lymphoid", "necrosis", "glass")


@dataclass(frozen=True)
class Field:
    """A picture (h, w, 3) uint8 and its truth (h, w) uint8, class ids from 1."""

    image: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Task:
    """Pictures to learn from and others to be judged on, never of the same case or seed.

    Attributes
    ----------
    mpp
        um per pixel of the pictures.
    brush, length
        Radius and length of a stroke, pixels.
    strokes
        Of all classes together on one picture, shared in proportion to area.
    cell
        Side of the squares that a dense annotator fills, pixels; 0: whole pictures.
    scored
        Class ids of which the mean is taken; bare glass is not among them, for it would flatter.
    rare
        The class of the least area.
    """

    name: str
    train: tuple[Field, ...]
    test: tuple[Field, ...]
    classes: tuple[str, ...]
    mpp: float
    brush: float
    length: float
    strokes: int
    cell: int
    scored: tuple[int, ...]
    rare: int


def synthetic(imbalance: float, seed: int, side: int = 1536, train: int = 3, test: int = 2) -> Task:
    """Synthetic tissue whose rarest class has 1 / `imbalance` of the area of each other; which one, the seed says."""
    rare = 1 + seed % 4
    shares = [1.0 / imbalance if c == rare else 1.0 for c in (1, 2, 3, 4)]
    # Several pictures: of a class with a hundredth of the area there is otherwise one small spot to learn from.
    made = [_rendered(shares, side, 1000 * seed + k) for k in range(1, 1 + train + test)]
    name = f"synthetic 1:{imbalance:g}"
    return Task(name, tuple(made[:train]), tuple(made[train:]), TISSUE, 0.5, 6, 160, 12, 256, (1, 2, 3, 4), rare)


def _rendered(shares: list[float], side: int, seed: int) -> Field:
    """Rendering takes seconds, so pictures are kept."""
    folder = RESULTS / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{side}-{seed}-{'-'.join(f'{s:g}' for s in shares)}.npz"
    if not path.exists():
        image, truth = render((side, side), seed=seed, shares=shares, glass=0.1, scale=400)
        part = path.with_suffix(f".{os.getpid()}.npz")  # several processes may make the same
        np.savez_compressed(part, image=image, truth=truth)
        part.replace(path)
    with np.load(path) as kept:
        return Field(kept["image"], kept["truth"])


def ebhi(classes: int, seed: int) -> Task:
    """EBHI-Seg, split by case into halves; 2: background and gland, 7: background and six lesions."""
    folder = DATA / "ebhi_seg"
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    cases = np.array([re.search(r"__GT[A-Za-z]*(\d+)", r["image"]).group(1) for r in rows])
    names = np.random.default_rng(seed).permutation(np.unique(cases))
    sizes = np.cumsum([(cases == n).sum() for n in names])
    chosen = np.isin(cases, names[: np.searchsorted(sizes, len(cases) / 2) + 1])
    fields = [
        Field(imread(folder / r["image"]), np.minimum(imread(folder / r["mask"]) + 1, classes).astype(np.uint8))
        for r in rows
    ]
    names = ["background", *(f"lesion {k}" for k in range(1, classes))]
    train = tuple(f for f, c in zip(fields, chosen, strict=True) if c)
    test = tuple(f for f, c in zip(fields, chosen, strict=True) if not c)
    areas = np.bincount(np.concatenate([f.truth.ravel() for f in train]), minlength=classes + 1)[1:]
    ids = tuple(range(1, classes + 1))
    rare = int(np.argmin(areas)) + 1
    return Task(f"EBHI-Seg {classes} classes", train, test, tuple(names), 1.0, 2, 100, 4, 0, ids, rare)


def sparse(task: Task, rng: np.random.Generator, hand: Hand = "centre") -> list[Annotations]:
    """Scribbles on every training picture."""
    out = []
    for picture in task.train:
        a = Annotations(picture.truth.shape, classes=make_classes(task.classes))
        for class_id, count in strokes_per_class(picture.truth, task.strokes).items():
            depth = depth_inside(picture.truth == class_id)
            for _ in range(count):
                points = stroke(depth, rng, radius=task.brush, length=task.length, hand=hand)
                if points is not None:
                    a.paint(points + 0.5, task.brush, class_id)
        out.append(a)
    return out


def add_dense(
    task: Task, annotations: list[Annotations], share: float, rng: np.random.Generator, *, rare: bool = False
) -> None:
    """Declare a share of all squares (or whole pictures) exhaustively labelled, drawn at random.

    With `rare` the last one gives way to the next that holds the rarest class, where none that was drawn does.
    """
    squares = [(k, box) for k, picture in enumerate(task.train) for box in _squares(picture.truth.shape, task.cell)]
    order, count = rng.permutation(len(squares)), max(1, round(share * len(squares)))
    holding = [i for i, (k, box) in enumerate(squares) if (task.train[k].truth[box.slices()] == task.rare).any()]
    chosen = order[:count]
    if rare and holding and not np.isin(chosen, holding).any():
        chosen[-1] = order[np.isin(order, holding)][0]
    for index in chosen:
        which, box = squares[index]
        _fill(annotations[which], task.train[which].truth, box)


def _squares(shape: tuple[int, ...], side: int) -> list[Box]:
    if not side:
        return [Box(0, 0, *shape)]
    return [Box(y, x, side, side) for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


def _fill(a: Annotations, truth: np.ndarray, box: Box) -> None:
    part = truth[box.slices()]
    ids, counts = np.unique(part, return_counts=True)
    rest = int(ids[np.argmax(counts)])
    for class_id in ids:
        if class_id != rest:
            a.begin_stroke(int(class_id), "fill")
            a.paint_mask(0, box.y, box.x, part == class_id)
            a.commit_stroke()
    y0, x0, y1, x1 = box.y, box.x, box.y1, box.x1
    # Scribbles within the square are right already; what is still unlabelled becomes the rest class.
    a.fill_polygon([(y0, x0), (y0, x1), (y1, x1), (y1, x0)], rest, dense=True)


@dataclass
class Clock:
    """CPU seconds of this process per thread of torch, so that a busy machine does not change the result."""

    started: float = field(default_factory=time.process_time)

    def __call__(self) -> float:
        return (time.process_time() - self.started) / torch.get_num_threads()

    def pause(self, work):
        """What `work` returns; its time does not count."""
        before = time.process_time()
        result = work()
        self.started += time.process_time() - before
        return result


def learner_for(task: Task, annotations: list[Annotations], config: TrainConfig) -> Learner:
    """A learner that has been given the labels and nothing else."""
    learner = Learner(config, make_classes(task.classes), device="cpu")
    learner.set_sources(sources(task, annotations, config.mpp))
    return learner


def sources(task: Task, annotations: list[Annotations], mpp: float | None) -> list[Source]:
    """The training pictures as slides, seen at so many um per pixel."""
    out = []
    for k, (picture, a) in enumerate(zip(task.train, annotations, strict=True)):
        slide = ArraySlide(picture.image, mpp=task.mpp, name=f"training {k}")
        out.append(Source(slide, a.snapshot(), slide.frame(mpp)))
    return out


def scores(task: Task, predict) -> dict[str, float]:
    """Dice of each class over all test pictures together, the mean, and the rare class apart.

    Parameters
    ----------
    predict
        Picture (h, w, 3) to class ids at 1 um per pixel.
    """
    total = 0
    ids = range(1, len(task.classes) + 1)
    for picture in task.test:
        found = predict(picture.image)
        step = round(1 / task.mpp)
        total = total + confusion(picture.truth[step // 2 :: step, step // 2 :: step], found, list(ids))
    return scores_of(task, np.asarray(total))


def scores_of(task: Task, counts: np.ndarray) -> dict[str, float]:
    """The same from a confusion matrix."""
    each = dice(counts)
    out = {name: float(each[k]) for k, name in enumerate(task.classes)}
    out["mean"] = float(np.nanmean([each[c - 1] for c in task.scored]))
    out["rare"] = float(each[task.rare - 1])
    out["rare precision"] = float(np.nan_to_num(precision(counts)[task.rare - 1]))
    out["rare recall"] = float(np.nan_to_num(recall(counts)[task.rare - 1]))
    return out


def model_scores(task: Task, model) -> dict[str, float]:
    """`scores` of a model of ours, which predicts at its own resolution; nearest neighbours at 1 um per pixel count."""

    def predict(image: np.ndarray) -> np.ndarray:
        slide = ArraySlide(image, mpp=task.mpp, name="test")
        frame, scored = slide.frame(model.metadata.mpp), slide.frame(1.0).shape(slide.shape)
        found = predict_region(model, slide, Box(0, 0, *frame.shape(slide.shape)), frame)[0]
        rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(scored, found.shape, strict=True))
        return found[rows[:, None], columns]

    return scores(task, predict)


def row_of(module: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m MODULE --one SETTINGS`` prints last, a row as JSON, from a fresh process of one thread.

    Raises
    ------
    RuntimeError
        With what it said, when it failed.
    """
    command = [sys.executable, "-m", module, "--one", json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {settings} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(module: str, settings: Sequence[dict[str, Any]], kept: Path, workers: int) -> list[dict[str, Any]]:
    """`row_of` each of the settings, in their order; rows in `kept`, a JSON object a line, are not made again."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    def find(one: dict[str, Any]) -> dict[str, Any] | None:
        return next((r for r in reversed(rows) if one.items() <= r.items()), None)

    def make(one: dict[str, Any]) -> None:
        row = row_of(module, one)
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{len(rows)} rows; {row}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(make, [one for one in settings if find(one) is None]))
    return [row for one in settings if (row := find(one)) is not None]


def machine() -> dict[str, str]:
    """Where and when a number was measured."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"model name\s*: (.+)", info.read_text())
        model = named.group(1) if named else model
    return {
        "date": datetime.now(UTC).date().isoformat(), "processor": model, "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(name: str, text: str, data: object) -> Path:
    """Write ``NAME.md`` and ``NAME.json`` into `RESULTS` and print the text."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    where = ", ".join(f"{k} {v}" for k, v in machine().items())
    text = f"{text}\n\n{where}\n"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "data": data}, indent=1))
    print(text, flush=True)
    return RESULTS / f"{name}.md"


def figure(name: str, panels: int, rows: int = 1):
    """The panels of a matplotlib figure, row by row, and the function that saves it; drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = -(-panels // rows)
    drawing = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(rows, columns, squeeze=False).ravel()[:panels]
    for a in axes:
        a.spines[["top", "right"]].set_visible(False)
        a.grid(axis="y", alpha=0.3)

    def save() -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        drawing.savefig(RESULTS / f"{name}.png", dpi=130)

    return axes, save


def seconds_axis(axis) -> None:
    """Seconds from 1 to some hundreds on a logarithmic axis, with plain numbers at it."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([1, 3, 10, 30, 60, 120]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
