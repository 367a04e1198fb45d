"""What each stage costs, and how that grows with slide, strokes and classes; with the memory at its peak.

    python -m tests.benchmarks.cost
    python -m pytest tests/benchmarks/test_cost.py -s

Wall-clock seconds on the threads of torch, the middle of `REPEATS`; drawing is measured by ``bench_painting.py``,
reading of large slides by ``bench_slides.py``, whole slides by ``bench_slide_prediction.py``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg import open_slide
from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.geometry import Box
from napari_sparseseg.inference import predict_region
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.slides.arrays import ArraySlide
from tests.benchmarks import common
from tests.conftest import real_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPEATS = 5
SIDE = 1024
"""Of the region that is predicted, frame pixels."""
ENCODERS = ("tf_efficientnet_lite0",)
"""Others must be downloaded; the plain U-Net stands beside it."""


def middle(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds; the first call, which fills caches, is left out."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def scribbled(shape: tuple[int, int], strokes: int, classes: int, seed: int = 0) -> Annotations:
    """Strokes of all classes in turn, anywhere: their number is what counts here, not their sense."""
    rng = np.random.default_rng(seed)
    out = Annotations(shape, classes=[f"class {k}" for k in range(1, classes + 1)])
    for k in range(strokes):
        start = rng.uniform(0, np.array(shape) - 1)
        line = start + np.cumsum(rng.normal(0, 8, (20, 2)), axis=0)
        out.paint(np.clip(line, 0, np.array(shape) - 1), 5, 1 + k % classes)
    return out


def stages(strokes: int, classes: int, architecture: str = "pretrained", side: int = 0) -> dict[str, Any]:
    """Seconds per stage on the real slide, or on one of `side` pixels made of it side by side."""
    real = open_slide(real_data("CMU-1-Small-Region.svs"))
    slide = real if not side else _larger(real, side)
    frame = slide.frame(1.0)
    annotations = scribbled(slide.shape, strokes, classes)
    row: dict[str, Any] = {
        "side": max(slide.shape), "strokes": strokes, "classes": classes, "architecture": architecture
    }  # fmt: skip
    box = Box(0, 0, min(SIDE, frame.shape(slide.shape)[0]), min(SIDE, frame.shape(slide.shape)[1]))
    row["read, s per MP"] = middle(lambda: slide.read_region(box, frame)) / box.area * 1e6
    row["snapshot"] = middle(annotations.snapshot)
    learner = Learner(
        TrainConfig(mpp=1.0, device="cpu", architecture=architecture),
        make_classes(annotations.classes),  # type: ignore[arg-type]
    )
    started = time.perf_counter()
    learner.set_sources([Source(slide, annotations.snapshot(), frame)])
    row["sources"] = time.perf_counter() - started
    started = time.perf_counter()
    learner.refit()
    while learner.pending:
        learner.step()
    row["first model"] = time.perf_counter() - started
    row["refit"] = middle(learner.refit, 3)
    annotations.paint([(100, 100), (160, 180)], 5, 1)

    def stroke_to_model() -> None:
        learner.set_sources([Source(slide, annotations.snapshot(), frame)])
        learner.refit()

    row["stroke to model"] = middle(stroke_to_model, 3)
    before, started = learner.step_count, time.perf_counter()
    while learner.step_count < before + 3:
        learner.step()
    row["training step"] = (time.perf_counter() - started) / 3
    model = learner.model
    row["predict, s per MP"] = middle(lambda: predict_region(model, slide, box, frame), 3) / box.area * 1e6
    row["peak MB so far"] = peak()
    return row


def _larger(real: Any, side: int) -> ArraySlide:
    pixels = real.read(Box(0, 0, 2048, 2048))
    times = side // 2048
    return ArraySlide(np.tile(pixels, (times, times, 1)), mpp=0.5, name=f"{side} px")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384])
    given = parser.parse_args(argv)
    grid = [{"strokes": n, "classes": 5} for n in given.strokes]
    grid += [{"strokes": 100, "classes": k} for k in given.classes if k != 5]
    grid += [{"strokes": 100, "classes": 5, "architecture": "scratch"}]
    grid += [{"strokes": 100, "classes": 5, "side": side} for side in given.sides]
    rows = []
    for settings in grid:
        rows.append(stages(**settings))
        print(rows[-1], flush=True)
    header = list(rows[0])
    lines = [[_shown(row[key]) for key in header] for row in rows]
    attack = (
        "- Is the first call flattered? Caches are warm in all medians; *sources* and *first model* are cold, once.\n"
        "- Peaks are of one process that did all rows above: they only grow; slides are in memory where a side is "
        "given larger than the file.\n"
        f"- Encoders: {', '.join(ENCODERS)} only; every other one would have to be downloaded."
    )
    text = "\n\n".join(["# Cost per stage, seconds", common.markdown(header, lines), "## Attacks", attack])
    common.report("cost", text, rows)
    axes, save = common.figure("cost", 2)
    keys = ("sources", "first model", "stroke to model", "training step")
    plain = [r for r in rows if r["architecture"] == "pretrained" and r["side"] < 4096]
    for axis, by, fixed in ((axes[0], "strokes", ("classes", 5)), (axes[1], "classes", ("strokes", 100))):
        chosen = sorted((r for r in plain if r[fixed[0]] == fixed[1]), key=lambda r: r[by])
        for key in keys if chosen else ():
            axis.plot([r[by] for r in chosen], [r[key] for r in chosen], "o-", ms=4, label=key)
        axis.set(xlabel=by, **({"xscale": "log", "yscale": "log"} if chosen else {}))
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False)
    save()
    return rows


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
