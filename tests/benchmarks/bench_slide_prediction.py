"""Whole-slide prediction against the bare network; prints figures, makes no claims about the machine.

    python -m tests.benchmarks.bench_slide_prediction [--side 4096] [--mpp 2] [--tile N] [--processes]

The slide is made of real tissue where the shared data is there (its small slide, mirrored to the wanted size), stored
as a tiled JPEG pyramid. All ratios come from one run: the network alone on the very tiles (read before, halo included),
then the whole run by threads, with time by stage, then, if asked, two processes of a local cluster.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import tifffile

from napari_sparseseg.geometry import Box
from napari_sparseseg.inference import input_region
from napari_sparseseg.slide_prediction import predict_slide
from napari_sparseseg.slide_prediction.tile_size import default_tile
from napari_sparseseg.slides import open_slide
from tests.conftest import DATA
from tests.test_slide_prediction_network import network


def make_slide(path: Path, side: int) -> Path:
    """A square pyramid of tissue at 0.5 um per px, written row of tiles by row of tiles."""
    source = DATA / "CMU-1-Small-Region.svs"
    if source.exists():
        tissue = tifffile.imread(source, series=0, level=0)
    else:
        tissue = np.random.default_rng(0).integers(100, 250, (1024, 1024, 3)).astype(np.uint8)
    h, w = tissue.shape[:2]

    def mirrored(start: int, stop: int, n: int) -> np.ndarray:
        k = np.arange(start, stop) % (2 * n)
        return np.where(k < n, k, 2 * n - 1 - k)

    def tile_stream(step: int):
        for y in range(0, side // step, 256):
            rows = mirrored(y * step, min(side, (y + 256) * step), h)[::step]
            for x in range(0, side // step, 256):
                columns = mirrored(x * step, min(side, (x + 256) * step), w)[::step]
                tile = np.full((256, 256, 3), 255, np.uint8)
                tile[: len(rows), : len(columns)] = tissue[np.ix_(rows, columns)]
                yield tile

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for k, step in enumerate((1, 4, 16)):
            n = side // step
            tiff.write(
                tile_stream(step), shape=(n, n, 3), dtype="uint8", tile=(256, 256), photometric="rgb",
                compression="jpeg", subifds=2 if k == 0 else None, subfiletype=int(k > 0),
                resolution=(20000 / step, 20000 / step), resolutionunit=3,
            )  # fmt: skip
    return path


def bare_speed(model, slide, mpp: float | None, tile: int, count: int = 6) -> tuple[float, float]:
    """Label megapixels per second, and those of the input with halos, of the network on tiles that are in memory."""
    frame = slide.frame(mpp)
    h, w = frame.shape(slide.shape)
    boxes = [Box(y, x, tile, tile) for y in range(0, h - tile + 1, tile) for x in range(0, w - tile + 1, tile)][:count]
    ready = [(source := input_region(model, box), slide.read_region(source, frame)) for box in boxes]
    model.probabilities(ready[0][1], origin=ready[0][0][:2])
    started = time.perf_counter()
    for source, pixels in ready:
        model.probabilities(pixels, origin=source[:2])
    seconds = time.perf_counter() - started
    return len(boxes) * tile * tile / 1e6 / seconds, sum(s.area for s, _ in ready) / 1e6 / seconds


class PeakMemory:
    """Largest resident and largest private memory of this process while it runs, in MB."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.resident = self.private = 0.0
        self.before = self._process.memory_info().rss / 1e6

    def __call__(self, _=None) -> None:
        info = self._process.memory_info()
        self.resident = max(self.resident, info.rss / 1e6)
        self.private = max(self.private, (info.rss - getattr(info, "shared", 0)) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--mpp", type=float, default=None)
    parser.add_argument("--tile", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--processes", action="store_true")
    args = parser.parse_args()
    model = network()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        with open_slide(make_slide(folder / "slide.tif", args.side)) as slide:
            slide.mpp = 0.5
            tile = args.tile or default_tile(model)
            memory = PeakMemory()
            bare, with_halo = bare_speed(model, slide, args.mpp, tile)
            started = time.perf_counter()
            result = predict_slide(
                slide, model, folder / "a.ome.zarr", mpp=args.mpp, tile=args.tile, workers=args.workers,
                geojson=folder / "a.geojson", csv=folder / "a.csv", progress=memory,
            )  # fmt: skip
            total = time.perf_counter() - started
            figures = {
                "label_px": list(result.shape), "tile": tile, "halo": model.halo,
                "bare_mp_s": round(bare, 3), "bare_input_mp_s": round(with_halo, 3),
                "run_mp_s": result.megapixels_per_second, "run_vs_bare": round(result.megapixels_per_second / bare, 3),
                "seconds": result.seconds, "total_seconds": round(total, 2),
                "measure_share": round(result.seconds["measure"] / total, 4), "objects": result.objects,
                "peak_rss_mb": round(memory.resident), "peak_private_mb": round(memory.private),
                "rss_before_mb": round(memory.before),
            }  # fmt: skip
            if args.processes:
                figures["two_processes_mp_s"] = cluster_speed(slide, model, folder, args)
        print(json.dumps(figures, indent=1))


def cluster_speed(slide, model, folder: Path, args: argparse.Namespace) -> float:
    """Megapixels per second by two single-threaded processes of a local cluster, their start not counted."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        result = predict_slide(
            slide, model, folder / "b.ome.zarr", mpp=args.mpp, tile=args.tile, scheduler=cluster.scheduler_address
        )
    return result.megapixels_per_second


if __name__ == "__main__":
    main()
