"""Whole-slide prediction against the bare network, each figure with its target.

    python -m tests.benchmarks.bench_slide_prediction [--side 20480] [--megapixels 33] [--train 40] [--processes]

The slide is of real tissue where the shared data is there (its small slide, mirrored to the wanted size), stored as a
tiled JPEG pyramid at 0.5 um per px; the model reads it at 1.0, after `--train` seconds of training. All ratios come
from one run: the bare forward pass (`Model.net` on float tensors that lie ready, in inference mode, of the very tiles
a run uses, halos included) before and after the run by the defaults, for the speed of a shared machine drifts; each in
a process of its own so that memory is that process's. On the large slide the run is stopped after `--megapixels` of
the label image; a smaller one is predicted whole, with its tables. Both throughputs are in label pixels of the same
tiles, so the halo costs both the same; what share of the pixels that the network gets is label pixels in the end is
printed beside them (`useful_share`). Glass is predicted like the rest, which a run does not do unless asked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from napari_sparseseg import Session
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.slide import run_prediction
from napari_sparseseg.prediction.slide.shards import default_tile
from napari_sparseseg.prediction.slide.workspace import Journal
from napari_sparseseg.prediction.tiles import input_region
from napari_sparseseg.slides import open_slide
from tests.helpers.data import DATA

MPP = 1.0


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


def train_model(slide_path: Path, path: Path, seconds: float) -> None:
    """A model of four classes by how dense the tissue is, from a hundred strokes where a blurred slide is sure of it.

    A trained model matters: from random weights comes noise, with ten times the outlines of a segmentation.
    """
    rng = np.random.default_rng(0)
    with open_slide(slide_path) as slide:
        side = min(4096, slide.shape[0]) // 4
        pixels = slide.read_region(Box(0, 0, side, side), slide.frame(4 * slide.mpp[0]))
    darkness = ndimage.gaussian_filter(255 - pixels.astype(np.float32).mean(axis=2), 6)
    limits = [12.0, *np.percentile(darkness[darkness > 12], (45, 80))]
    classes = np.digitize(darkness, limits)
    with Session(["glass", "pale", "dense", "cellular"]) as session:
        session.open(slide_path)
        for k in range(4):
            sure = np.argwhere(ndimage.distance_transform_edt(classes == k) > 6)
            for y, x in sure[rng.choice(len(sure), min(25, len(sure)), replace=False)]:
                end = np.array([y, x]) + rng.integers(-4, 5, 2)
                session.annotations.paint([(4 * y, 4 * x), tuple(4 * end)], 8, k + 1)
        session.train(mpp=MPP, seconds=seconds, wait=True)
        session.save_model(path)


def peak_mb(name: str = "VmHWM") -> float:
    """Largest resident memory of this process so far, shared libraries included, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {name}")


def bare(slide_path: Path, model_path: Path, count: int) -> dict[str, float]:
    """Megapixels per second that go through the network, and the share of them that is label pixels.

    The process is set up as that of a run is, before torch is imported: memory and threads decide the speed of both.
    """
    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.learning.torch_runtime import tune_process

    tune_process(predicting=True)
    model = load_model(model_path)
    import torch

    tile = default_tile(model)
    with open_slide(slide_path) as slide, torch.inference_mode():
        frame = slide.frame(MPP)
        boxes = [Box(0, i * tile, tile, tile) for i in range(count)]
        sources = [input_region(model, box) for box in boxes]
        ready = [model.scale.unit(slide.read_region(s, frame)[None]) for s in sources]
        ready = [x.contiguous(memory_format=torch.channels_last) for x in ready]
        model.net(ready[0])
        begun, cpu = time.perf_counter(), time.process_time()
        for x in 2 * ready:
            model.net(x)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        memory = peak_mb()
    given, answered = 2 * sum(s.area for s in sources) / 1e6, 2 * count * tile * tile / 1e6
    return {
        "input_mp_s": given / seconds, "label_mp_s": answered / seconds, "label_mp_cpu_s": answered / cpu,
        "peak_mb": memory,
        "tile": tile, "halo": model.halo, "useful_share": answered / given,
    }  # fmt: skip


def run(slide_path: Path, model_path: Path, out: Path, megapixels: float, scheduler: str | None) -> dict[str, float]:
    """A run as the command does it, stopped after so many megapixels, or whole with its tables."""
    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.learning.torch_runtime import tune_process

    tune_process(predicting=True)
    model, stop, seen = load_model(model_path), threading.Event(), [0.0, 0.0, 0.0]
    before, cpu = peak_mb(), 0.0

    def progress(state) -> None:
        if state.stage == "predict":
            seen[:] = state.done / 1e6, state.seconds, time.process_time() - cpu
            if megapixels and seen[0] >= megapixels:
                stop.set()

    with open_slide(slide_path) as slide:
        cpu = time.process_time()
        try:
            result = run_prediction(
                slide, model, out, progress=progress, stop=stop, scheduler=scheduler,
                geojson=out.with_suffix(".geojson"), csv=out.with_suffix(".csv"), tissue_only=False,
            )  # fmt: skip
        except PredictionError:
            if not stop.is_set():
                raise
            return {
                "label_mp_s": seen[0] / seen[1], "label_mp_cpu_s": seen[0] / seen[2], "peak_mb": peak_mb(),
                "start_mb": before,
            }  # fmt: skip
    seconds = result.seconds
    return {
        "label_mp_s": result.megapixels_per_second, "label_mp_cpu_s": seen[0] / seen[2], "peak_mb": peak_mb(),
        "start_mb": before,
        "io_share": (seconds.get("wait", 0.0) + seconds["write"] + seconds["pyramid"]) / total(seconds),
        "measure_share": seconds["measure"] / total(seconds), "objects": result.objects,
    }  # fmt: skip


def total(seconds: dict[str, float]) -> float:
    """Wall time of all stages; ``wait`` is a part of ``predict``."""
    return sum(v for k, v in seconds.items() if k != "wait")


def cluster_speed(slide_path: Path, model_path: Path, out: Path) -> float:
    """Megapixels per second by two single-threaded processes of a local cluster, their start not counted."""
    from distributed import LocalCluster

    from napari_sparseseg.learning.model import load_model

    os.environ["OMP_NUM_THREADS"] = "1"
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        model = load_model(model_path)
        with open_slide(slide_path) as slide:
            run_prediction(
                slide, model, out.with_name("warm.ome.zarr"), scheduler=cluster.scheduler_address, tissue_only=False
            )
            result = run_prediction(slide, model, out, scheduler=cluster.scheduler_address, tissue_only=False)
    return result.megapixels_per_second


def redone_after_kill(slide_path: Path, model_path: Path, out: Path) -> int:
    """Shards that a run begun again had to do twice, after kill -9 between its first and its second shard."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run, args=(slide_path, model_path, out, 0, None))
    process.start()
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    while process.is_alive() and not (journal.exists() and '"shard"' in journal.read_text()):
        time.sleep(0.02)
    time.sleep(1.0)
    process.kill()
    process.join()
    done = len(Journal(journal).done)
    from napari_sparseseg.learning.model import load_model

    with open_slide(slide_path) as slide:
        result = run_prediction(slide, load_model(model_path), out, resume=True, tissue_only=False)
    kept = result.shards_resumed
    return done - kept + 1  # and the one under way when it was killed


def alone(function, *args):
    """What a function returns in a process of its own, which may have children."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=20480)
    parser.add_argument("--megapixels", type=float, default=33.0, help="of the large slide's label image")
    parser.add_argument("--small", type=int, default=8192, help="side of the slide that is predicted whole")
    parser.add_argument("--train", type=float, default=40.0, help="seconds")
    parser.add_argument("--folder", type=Path, help="keeps slides and model there, and takes them from there")
    parser.add_argument("--processes", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, kept = Path(name), args.folder or Path(name)
        model, large, small = kept / "m.safetensors", kept / "large.tif", kept / "small.tif"
        for path, side in ((large, args.side), (small, args.small)):
            if not path.exists():
                make_slide(path, side)
        if not model.exists():
            alone(train_model, small, model, args.train)
        before = alone(bare, large, model, 8)
        part = alone(run, large, model, folder / "large.ome.zarr", args.megapixels, None)
        after = alone(bare, large, model, 8)
        base = {key: (before[key] + after[key]) / 2 for key in before}
        shutil.rmtree(folder / "large.ome.zarr.partial")
        whole = alone(run, small, model, folder / "small.ome.zarr", 0, None)
        figures = {
            "bare_before": before, "bare_after": after, "large_slide": part, "whole_small_slide": whole,
            "throughput, run / bare (target >= 0.9)": part["label_mp_s"] / base["label_mp_s"],
            "the same per second of CPU time, which other programs disturb less": (
                part["label_mp_cpu_s"] / base["label_mp_cpu_s"]
            ),
            "input and output, share of wall (target <= 0.1)": whole["io_share"],
            "vectorisation, share of wall (target <= 0.1)": whole["measure_share"],
            "peak resident MB on the large slide (target <= 1000)": part["peak_mb"],
            "of that on top of the bare forward pass": part["peak_mb"] - base["peak_mb"],
            "shards done twice after kill -9, one worker (target <= 1)": redone_after_kill(
                small, model, folder / "killed.ome.zarr"
            ),
        }  # fmt: skip
        if args.processes:
            two = alone(cluster_speed, small, model, folder / "cluster.ome.zarr")
            figures["two processes / one process with two threads (target >= 1.0)"] = two / whole["label_mp_s"]
    print(json.dumps(figures, indent=1, default=float))


if __name__ == "__main__":
    main()
