"""Clean-up of a large result, then its objects as CSV and as GeoJSON: seconds for a megapixel, memory, objects.

``python -m tests.benchmarks.bench_cleanup [SIDE] [OBJECTS]`` makes a label image of SIDE x SIDE px with tissue, round
objects of which many touch, and specks, and cleans it: holes, specks, borders, touching objects. Measuring is in the
time of both tables. A prediction by the default command beside it is ``bench_slide_prediction`` or ``bench_limits``.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from napari_sparseseg import Session
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement, tiles
from napari_sparseseg.io.ome_zarr import SHARD, PredictionStore, StoreLayout, create_store
from napari_sparseseg.prediction.results.cleanup import CleanUp
from napari_sparseseg.prediction.slide.cleaning import clean_up

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = make_classes(["glass", "stroma", "gland", "nucleus"])


def label_image(side: int, objects: int, path: Path) -> None:
    """Tissue of two classes in broad patches with discs of a third, 1 % of the pixels wrong."""
    layout = StoreLayout((side, side), Placement(Frame((1.0, 1.0)), (0.5, 0.5)), CLASSES)
    create_store(path, layout, {"downsample": [1.0, 1.0], "mpp": [0.5, 0.5], "slide": "made"})
    store = PredictionStore(path)
    rng = np.random.default_rng(0)
    share = objects * SHARD**2 / side**2
    for shard in tiles(Box(0, 0, side, side), SHARD):
        coarse = ndimage.gaussian_filter(rng.random((SHARD // 8, SHARD // 8)), 6)
        labels = np.kron(np.digitize(coarse, [0.48, 0.5]) + 1, np.ones((8, 8), int)).astype(np.uint8)
        y, x = np.mgrid[-9:10, -9:10]
        for cy, cx, r in zip(
            *rng.integers(12, SHARD - 12, (2, round(share))), rng.integers(4, 9, round(share)), strict=True
        ):
            part = labels[cy - 9 : cy + 10, cx - 9 : cx + 10]
            part[y**2 + x**2 <= r * r] = 4
        wrong = rng.random(labels.shape) < 0.01
        labels[wrong] = rng.integers(1, 5, int(wrong.sum()))
        store.write(shard, labels, None)


def main() -> None:
    """Print the figures as JSON."""
    side, objects = (int(a) for a in [*sys.argv[1:], "20480", "300000"][:2])
    out: dict[str, object] = {"side": side}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made.ome.zarr")
        label_image(side, objects, path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def timed(name: str, work: Callable[[], object]) -> object:
            cpu, wall = time.process_time(), time.monotonic()
            made = work()
            spent = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
            out[name] = {f"{k}_s_per_mp": round(v / (side**2 / 1e6), 4) for k, v in spent.items()}
            out[name] |= {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
            return made

        for name, settings in {
            "specks_and_holes": CleanUp(smallest_um2=10, holes_um2=20),
            "all": CleanUp(smooth_um=1.5, smallest_um2=10, holes_um2=20, separate=("nucleus",)),
        }.items():
            timed(name, lambda s=settings, n=name: clean_up(path, s, name=n, min_area_um2=0))
        with Session(()) as session:
            image, tables = path / "labels" / "all", [Path(folder, f"objects.{k}") for k in ("csv", "geojson")]
            for table in tables:
                found = timed(table.suffix, lambda t=table: session.results.measure_objects(image, t, min_area_um2=0))
        out |= {"objects": len(found), "before_mb": before // 1024}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
