"""Clean-up of a large result: CPU seconds for a megapixel, memory, objects.

``python -m tests.benchmarks.bench_cleanup [SIDE] [OBJECTS]`` makes a label image of SIDE x SIDE px with tissue, round
objects of which many touch, and specks, and cleans it: holes, specks, borders, touching objects.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement, tiles
from napari_sparseseg.io.ome_zarr import SHARD, PredictionStore, StoreLayout, create_store
from napari_sparseseg.prediction.results.cleanup import CleanUp
from napari_sparseseg.prediction.slide.cleaning import clean_up

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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made.ome.zarr")
        label_image(side, objects, path)
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun, out = time.process_time(), {}
        for name, settings in {
            "specks_and_holes": CleanUp(smallest_um2=10, holes_um2=20),
            "all": CleanUp(smooth_um=1.5, smallest_um2=10, holes_um2=20, separate=("nucleus",)),
        }.items():
            found = clean_up(path, settings, name=name, min_area_um2=0)
            spent = time.process_time() - begun
            out[name] = {"cpu_s_per_mp": round(spent / (side**2 / 1e6), 3), "objects": found.objects}
            begun = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"side": side, **out, "peak_mb": peak // 1024, "before_mb": before.ru_maxrss // 1024}))


if __name__ == "__main__":
    main()
