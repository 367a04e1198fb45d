"""Whole slides against what the machine could do: ``python -m tests.benchmarks.bench_limits [--side 12288]``.

One run prints one table (under four minutes on two quiet cores): the default ``predict``, start to end and while it
predicts, beside the bare network on all cores over tiles that do not overlap (a process of one thread a core, tensors
ready in memory), the bare reading of the same pixels on all cores, the share of the processor's measured peak, and
memory. The network is measured before and after the run, for the speed of a shared machine drifts. The slide and the
model are those of `bench_slide_prediction`; glass is predicted like the rest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.geometry import Box
from tests.benchmarks.bench_slide_prediction import MPP, alone, make_slide, train_model

if TYPE_CHECKING:
    from collections.abc import Callable

TILE = 1008


def on_all_cores(function: Callable[..., tuple[float, float]], *args: object) -> tuple[float, float]:
    """Megapixels per second of wall and per second of CPU, of a process for each core that work at the same time."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(cores) as pool:
        barrier = manager.Barrier(cores)
        found = pool.starmap(function, [(barrier, k, *args) for k in range(cores)])
    return sum(wall for wall, _ in found), sum(cpu for _, cpu in found) / cores


def repeated(barrier, work: Callable[[], float], seconds: float) -> tuple[float, float]:
    """What `work` gives in megapixels, per second of wall and of CPU, once every process is ready."""
    work()
    barrier.wait()
    begun, cpu, done = time.perf_counter(), time.process_time(), 0.0
    while time.perf_counter() - begun < seconds:
        done += work()
    return done / (time.perf_counter() - begun), done / (time.process_time() - cpu)


def bare_network(barrier, k: int, slide_path: Path, model_path: Path, seconds: float) -> tuple[float, float]:
    """One core's share of the network's speed."""
    import torch

    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.learning.torch_runtime import tune_process
    from napari_sparseseg.slides import open_slide

    tune_process(predicting=True)
    torch.set_num_threads(1)
    model = load_model(model_path, device="cpu")
    with open_slide(slide_path) as slide:
        pixels = slide.read_region(Box(0, k * TILE, TILE, TILE), slide.frame(MPP))
    ready = model.scale.unit(pixels[None]).contiguous(memory_format=torch.channels_last)

    def work() -> float:
        with torch.inference_mode():
            model.net(ready)
        return TILE * TILE / 1e6

    return repeated(barrier, work, seconds)


def bare_reading(barrier, k: int, slide_path: Path, seconds: float) -> tuple[float, float]:
    """One core's share of reading tiles that do not overlap."""
    from napari_sparseseg.slides import open_slide
    from napari_sparseseg.slides.cache import TILES

    TILES.max_bytes = 16 << 20
    with open_slide(slide_path) as slide:
        frame = slide.frame(MPP)
        columns = frame.shape(slide.shape)[1] // TILE
        at = [k]

        def work() -> float:
            row, column = divmod(at[0] % (columns * columns), columns)
            at[0] += os.cpu_count() or 1
            slide.read_region(Box(row * TILE, column * TILE, TILE, TILE), frame)
            return TILE * TILE / 1e6

        return repeated(barrier, work, seconds)


def arithmetic(model_path: Path) -> tuple[float, float]:
    """FLOP per pixel of the network, and GFLOP per second of CPU of a large matrix product, one thread."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from napari_sparseseg.learning.model import load_model

    torch.set_num_threads(1)
    model = load_model(model_path, device="cpu")
    image = torch.zeros(1, len(model.scale.low), 256, 256)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.net(image)
    a = torch.randn(2048, 2048)
    best = 0.0
    for _ in range(5):
        cpu = time.process_time()
        a @ a
        best = max(best, 2 * 2048**3 / (time.process_time() - cpu) / 1e9)
    return counter.get_total_flops() / 256**2, best


def decoder_share(model_path: Path) -> float:
    """How much of the answer is the decoder's; without it a pass is shorter."""
    from napari_sparseseg.learning.model import load_model

    return float(load_model(model_path, device="cpu").net.share)


def predict(slide_path: Path, model_path: Path, out: Path, share: float) -> dict[str, float]:
    """The default command, from the start of its process to its end."""
    command = [
        sys.executable, "-m", "napari_sparseseg", "predict", str(slide_path), "--model", str(model_path), "--output",
        str(out), "--everywhere", "--json", "--geojson", str(out.with_suffix(".geojson")), "--csv",
        str(out.with_suffix(".csv")),
    ]  # fmt: skip
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.perf_counter() - begun, usage.ru_utime + usage.ru_stime
    assert process.returncode == 0
    result = json.loads(printed)
    megapixels = result["shape"][0] * result["shape"][1] / 1e6
    return {
        "whole": megapixels / wall, "whole_cpu": megapixels / cpu, "predicting": result["megapixels_per_second"],
        "waiting": result["seconds"].get("wait", 0.0) / result["seconds"]["predict"], "memory": usage.ru_maxrss / 1e3,
        "megapixels": megapixels, "share": share,
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=12288, help="of the slide, at 0.5 um per px")
    parser.add_argument("--train", type=float, default=20.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each bare measurement")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide, small, model = folder / "slide.tif", folder / "small.tif", folder / "model.safetensors"
        make_slide(slide, args.side)
        make_slide(small, 4096)
        alone(train_model, small, model, args.train)
        before = on_all_cores(bare_network, slide, model, args.seconds)
        run = predict(slide, model, folder / "out.ome.zarr", alone(decoder_share, model))
        after = on_all_cores(bare_network, slide, model, args.seconds)
        reading = on_all_cores(bare_reading, slide, args.seconds / 2)
        flop, peak = alone(arithmetic, model)
    wall, cpu = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    rows = [
        ("bare network, all cores, no overlap", wall, cpu),
        ("bare reading, all cores", *reading),
        ("default predict, start to end", run["whole"], run["whole_cpu"]),
        ("default predict, while predicting", run["predicting"], None),
    ]
    load, share = os.getloadavg()[0], run["share"]
    print(f"{os.cpu_count()} cores, {run['megapixels']:.0f} MP, load {load:.1f}, share of the decoder {share:.2f}")
    print("| what | MP/s | of the bare network | MP per CPU s | of the bare network |\n|---|---|---|---|---|")
    for what, speed, per_cpu in rows:
        right = "| | |" if per_cpu is None else f"| {per_cpu:.2f} | {per_cpu / cpu:.2f} |"
        print(f"| {what} | {speed:.2f} | {speed / wall:.2f} {right}")
    print(
        f"{flop / 1e3:.1f} kFLOP per px; the bare network does {flop * cpu / 1e3:.1f} GFLOP per CPU s, "
        f"{flop * cpu / 1e3 / peak:.2f} of a matrix product's {peak:.0f}. Waiting for pixels: {run['waiting']:.1%}. "
        f"Memory of the run at its peak: {run['memory']:.0f} MB."
    )
    if args.json:
        figures = {"rows": rows, "run": run, "flop_per_px": flop, "peak_gflops": peak, "load": os.getloadavg()[0]}
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
