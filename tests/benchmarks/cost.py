"""What each stage costs, and how that grows with slide, strokes, classes and encoder; with the memory at its peak.

    python -m tests.benchmarks.cost                      # 10 CPU minutes
    python -m pytest tests/benchmarks/test_cost.py -s

CPU seconds on one thread, so that a busy machine does not change them; the middle of `REPEATS` with warm caches, but
for what happens once. Every row is a process of its own, so that its peak of memory is its own. Drawing is measured by
``bench_painting.py``, reading of large slides by ``bench_slides.py``, whole slides by ``bench_slide_prediction.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from napari_sparseseg import open_slide
from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.prediction.tiles import predict_region
from tests.benchmarks import common
from tests.helpers.data import real_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.slides import Slide

Row = dict[str, Any]
REPEATS = 3
SIDE = 1024
"""Of the region that is predicted, frame pixels."""
READ = 256
"""Side of what is read, each time elsewhere, frame pixels."""
TILE = 256
"""Of larger slides, pixels."""
ENCODED = 512
"""Side of what is encoded, frame pixels."""
SECOND = "resnet18"
"""An encoder of timm's beside the bundled one, with random weights: what it costs does not depend on them."""
GRID = ("strokes", "classes", "side", "encoder")
STAGES = ("read", "encode", "first model", "refit", "stroke to model", "training step", "predict")


def middle(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median CPU seconds; the first call, which fills caches, is left out."""
    work()
    return statistics.median(once(work) for _ in range(repeats))


def once(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


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


def config_of(encoder: str, folder: Path) -> TrainConfig:
    """Settings for ``bundled``, ``scratch`` (the plain U-Net), or a timm network with random weights from a file."""
    if encoder in ("bundled", "scratch"):
        return TrainConfig(mpp=1.0, device="cpu", architecture="scratch" if encoder == "scratch" else "pretrained")
    import timm
    from safetensors.torch import save_file

    common.torch.manual_seed(0)
    save_file(timm.create_model(encoder, pretrained=False).state_dict(), folder / "weights.safetensors")
    return TrainConfig(mpp=1.0, device="cpu", encoder=f"{encoder}@{folder / 'weights.safetensors'}")


def stages(strokes: int, classes: int, side: int, encoder: str) -> Row:
    """CPU seconds per stage on the real slide, or on one of `side` pixels made of it side by side; MB at most."""
    common.torch.set_num_threads(1)
    real = open_slide(real_data("CMU-1-Small-Region.svs"))
    with tempfile.TemporaryDirectory() as folder:
        slide = _larger(real, side, Path(folder)) if side else real
        row: Row = {"strokes": strokes, "classes": classes, "side": max(slide.shape), "encoder": encoder}
        row["MB before"] = peak()
        row |= _learned(slide, scribbled(slide.shape, strokes, classes), config_of(encoder, Path(folder)))
        row["MB at most"] = peak()
        slide.close()
    return row


def _learned(slide: Slide, annotations: Annotations, config: TrainConfig) -> Row:
    frame = slide.frame(1.0)
    height, width = frame.shape(slide.shape)
    box = Box(0, 0, min(SIDE, height), min(SIDE, width))
    fresh = iter([Box(y, x, READ, READ) for y in range(0, box.height, 2 * READ) for x in range(0, box.width, 2 * READ)])
    row: Row = {"read": middle(lambda: slide.read_region(next(fresh), frame)) / READ**2 * 1e6}
    learner = Learner(config, make_classes(annotations.classes))  # type: ignore[arg-type]

    def fit() -> None:
        learner.set_sources([Source(slide, annotations.snapshot(), frame)])
        learner.refit()
        while learner.pending:
            learner.step()

    row["first model"] = once(fit)
    row["encode"] = _encoded(learner, slide, frame)
    row["refit"] = middle(learner.refit)
    strokes = iter(scribbled(slide.shape, REPEATS + 1, len(annotations.classes), seed=1).strokes)

    def stroke_to_model() -> None:
        """A new stroke, mostly where nothing was encoded yet."""
        stroke = next(strokes)
        annotations.paint(stroke.points, 5, stroke.class_id)
        fit()

    row["stroke to model"] = middle(stroke_to_model)
    before = learner.step_count

    def three_steps() -> None:
        while learner.step_count < before + 3:
            learner.step()

    row["training step"] = once(three_steps) / 3
    model = learner.model
    row["predict"] = middle(lambda: predict_region(model, slide, box, frame), 2) / box.area * 1e6
    return row


def _encoded(learner: Learner, slide: Slide, frame: Frame) -> float:
    """CPU seconds per megapixel of the encoder alone; NaN for the plain U-Net, which has none."""
    model = learner.model
    if model is None or not hasattr(model.net, "features"):
        return math.nan
    image = model.scale.unit(slide.read_region(Box(0, 0, ENCODED, ENCODED), frame)[None])
    with common.torch.inference_mode():
        return middle(lambda: model.net.features(image)) / ENCODED**2 * 1e6


def _larger(real: Slide, side: int, folder: Path) -> Slide:
    """A tiled JPEG file of `side` pixels, made of one square of the slide side by side."""
    pixels = real.read(Box(0, 0, 2048, 2048))
    cells = range(side // TILE)
    places = ((TILE * y % 2048, TILE * x % 2048) for y in cells for x in cells)
    tifffile.imwrite(
        folder / "larger.tif", (np.ascontiguousarray(pixels[y : y + TILE, x : x + TILE]) for y, x in places),
        shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", compression="jpeg",
        resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return open_slide(folder / "larger.tif")


def publish(rows: Sequence[Row]) -> None:
    """Table, attacks, and a curve of time and memory for everything that grows."""
    header = [*GRID, *(f"{s}, s/MP" if s in ("read", "encode", "predict") else s for s in STAGES)]
    lines = [[_shown(r[key]) for key in (*GRID, *STAGES, "MB before", "MB at most")] for r in rows]
    attacks = (
        "- Are warm caches flattering? What is read was not read before; *first model* is cold too, and happens "
        "once; the other medians are of repeated work, as in the loop.\n"
        "- Whose memory? Each row has a process of its own; *before* is with everything imported and the slide open.\n"
        "- Does the random encoder flatter? It costs what a trained one of its kind would; its quality is nothing.\n"
        "- A busy machine? CPU seconds; caches shared with others may still cost some percent."
    )
    table = common.markdown([*header, "MB before", "MB at most"], lines)
    common.report("cost", "\n\n".join(["# Cost per stage, CPU seconds", table, "## Attacks", attacks]), list(rows))
    axes, save = common.figure("cost", 6, rows=2)
    for above, below, by in zip(axes[:3], axes[3:], ("strokes", "classes", "side"), strict=True):
        others = {"strokes": 100, "classes": 5, "side": rows[0]["side"], "encoder": "bundled"}
        del others[by]
        chosen = sorted((r for r in rows if all(r[k] == v for k, v in others.items())), key=lambda r: r[by])
        where = [r[by] for r in chosen]
        for key in ("first model", "stroke to model", "refit", "training step"):
            above.plot(where, [r[key] for r in chosen], "o-", ms=4, label=key)
        for key, colour in (("MB before", "#999999"), ("MB at most", "#0072b2")):
            below.plot(where, [r[key] for r in chosen], "o-", ms=4, color=colour, label=key)
        above.set_ylim(0.01, 20)
        above.set_yscale("log")
        below.set_ylim(bottom=0)
        for axis in (above, below):
            axis.set_xscale("linear" if by == "classes" else "log")
            axis.minorticks_off()
            axis.set_xticks(where, [f"{n:,}" for n in where])
        below.set_xlabel({"side": "side of the slide, px"}.get(by, by))
    axes[0].set_ylabel("CPU seconds")
    axes[3].set_ylabel("memory, MB")
    axes[0].legend(frameon=False, fontsize=7)
    axes[3].legend(frameon=False, fontsize=7)
    save()


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--sides", type=int, nargs="*", default=[4096, 16384, 32768])
    parser.add_argument("--encoders", nargs="*", default=[SECOND, "scratch"])
    parser.add_argument("--one", help="settings of one row, as JSON; prints it")
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(stages(**json.loads(given.one))))
        return []
    usual = {"strokes": 100, "classes": 5, "side": 0, "encoder": "bundled"}
    grid = [{**usual, "strokes": n} for n in given.strokes]
    grid += [{**usual, "classes": k} for k in given.classes if k != 5]
    grid += [{**usual, "side": side} for side in given.sides]
    grid += [{**usual, "encoder": name} for name in given.encoders]
    rows = []
    for settings in grid:
        rows.append(common.row_of("tests.benchmarks.cost", settings))
        print(rows[-1], flush=True)
    publish(rows)
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
