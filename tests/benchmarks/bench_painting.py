"""Issue 3's numbers: painting 100k x 100k with real mouse events.

Run ``python -m tests.benchmarks.bench_painting [--json FILE] [--shots DIR]`` under a display (``xvfb-run -a``), with
``LP_NUM_THREADS=1`` where GL is software. A 10 ms QTimer ticks all along, as live prediction would. *move* is the time
inside event delivery (all Python work and the texture upload call), not the repaint. *Memory on top of the viewer* is
what the process has grown by since the same viewer, with the same slide, had made the same drags without scribbles.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-bench-")) / "settings.yaml"))

import dask.array as da
import napari
import numpy as np
import psutil
from qtpy.QtCore import QTimer

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.gui.layers.slide_layers import Scribbles
from tests.helpers.mouse import Mouse, look_at, pump, wave

SIDE = 100_000
ZOOMS = {"whole slide": 0.0065, "1:32": 1 / 32, "1:8": 1 / 8, "1:2": 1 / 2, "1:1": 1.0}
BRUSHES = (4, 20, 60)
MOVES, STROKES = 30, 2000
MOVE_LIMIT_MS, UNDO_LIMIT_MS, RELEASE_LIMIT_MS, MEMORY_LIMIT_MB = 16.0, 30.0, 30.0, 150.0
PAINT_LIMIT_MS = 60.0


def tissue_pyramid() -> list[da.Array]:
    """A procedural RGB slide whose levels agree."""

    def block(factor: int, block_info=None) -> np.ndarray:
        (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
        y = (np.arange(y0, y1, dtype=np.int64) * factor)[:, None]
        x = (np.arange(x0, x1, dtype=np.int64) * factor)[None, :]
        gland = ((y - SIDE // 2) ** 2 // 4 + (x - SIDE // 2) ** 2 // 4) % 60_000_000 < 20_000_000
        return np.where(gland[..., None], np.uint8((175, 120, 195)), np.uint8((235, 200, 215)))

    levels, factor = [], 1
    while SIDE // factor > 700:
        n = SIDE // factor
        chunks = da.core.normalize_chunks((1024, 1024, 3), (n, n, 3))
        levels.append(
            da.map_blocks(block, factor, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), dtype=np.uint8))
        )
        factor *= 2
    return levels


def rss_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(np.max(values)),
    }


def paint_table(viewer, scribbles: Scribbles, mouse: Mouse) -> list[dict]:
    layer, rows = scribbles.layer, []
    layer.mode = "paint"
    for zoom_name, zoom in ZOOMS.items():
        look_at(viewer, SIDE / 2, SIDE / 2, zoom)
        for brush in BRUSHES:
            for preserve in (False, True) if brush != BRUSHES[0] else (False,):
                layer.brush_size, layer.preserve_labels = brush, preserve
                layer.selected_label = 1 + len(rows) % 2
                timing = mouse.drag(wave(mouse.size, MOVES), hz=60)
                row = {"zoom": zoom_name, "brush": brush, "preserve": preserve, **summary(timing.moves)}
                rows.append({**row, "press": timing.press, "release": timing.release})
    layer.preserve_labels = False
    return rows


def pan_about(viewer, mouse: Mouse, drags: int = 2) -> None:
    """What the viewer itself takes for as many zooms and drags: with no scribbles they pan."""
    for zoom in ZOOMS.values():
        for _ in range(drags):
            look_at(viewer, SIDE / 2, SIDE / 2, zoom)
            mouse.drag(wave(mouse.size, MOVES), hz=60)
        look_at(viewer, SIDE / 2, SIDE / 2, zoom)


def verdict(what: str, value: float, limit: float, unit: str) -> str:
    return f"{what}: {value:.1f} {unit}, target {limit:.0f}: {'PASS' if value <= limit else 'FAIL'}"


def undo_times(scribbles: Scribbles, steps: int) -> list[float]:
    out = []
    for step in (scribbles.layer.undo, scribbles.layer.redo):
        for _ in range(steps):
            start = time.perf_counter()
            step()
            out.append((time.perf_counter() - start) * 1e3)
            pump()
    return out


def many_strokes(scribbles: Scribbles, annotations: Annotations, strokes: int) -> dict[str, float]:
    """Strokes of 40 points at mixed brush sizes, headless timing and memory."""
    rng, times, before = np.random.default_rng(0), [], rss_mb()
    for i in range(strokes):
        scale = 2.0 ** rng.integers(0, 7)
        start = rng.uniform(0.05, 0.95, 2) * SIDE
        points = np.clip(start + np.cumsum(rng.normal(0, 8 * scale, (40, 2)), axis=0), 0, SIDE - 1)
        begin = time.perf_counter()
        annotations.paint(points, 10 * scale, 1 + i % 2)
        times.append((time.perf_counter() - begin) * 1e3)
    pump(0.5)
    return {"strokes": strokes, "memory_mb": rss_mb() - before, **{f"paint_{k}": v for k, v in summary(times).items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--strokes", type=int, default=STROKES)
    options = parser.parse_args()
    viewer = napari.Viewer()
    viewer.window.resize(1000, 760)
    viewer.add_image(tissue_pyramid(), rgb=True, multiscale=True, cache=False, name="slide")
    pump(0.5)
    mouse, ticks = Mouse(viewer), []
    pan_about(viewer, mouse)
    before = rss_mb()
    annotations = Annotations((SIDE, SIDE), classes=["tumour", "stroma"])
    annotations.attach(Path(tempfile.mkdtemp(prefix="sparseseg-bench-")) / "annotations.sqlite")
    scribbles = Scribbles(viewer, annotations)
    timer = QTimer()
    timer.setInterval(10)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start()
    rows = paint_table(viewer, scribbles, mouse)
    for name, zoom in ZOOMS.items() if options.shots else ():
        look_at(viewer, SIDE / 2, SIDE / 2, zoom)
        viewer.screenshot(str(options.shots / f"painting_{name.replace(' ', '_').replace(':', '_')}.png"), flash=False)
    undo = summary(undo_times(scribbles, 10))
    layer_mb = rss_mb() - before
    stress = many_strokes(scribbles, annotations, options.strokes)
    timer.stop()
    print(f"{'zoom':12} {'brush':>5} {'keep':>5} {'press':>7} {'median':>7} {'p95':>7} {'max':>7} {'release':>8}  (ms)")
    for r in rows:
        print(
            f"{r['zoom']:12} {r['brush']:5} {r['preserve']!s:>5} {r['press']:7.1f} {r['median']:7.1f} {r['p95']:7.1f} "
            f"{r['max']:7.1f} {r['release']:8.1f}"
        )
    memory = layer_mb + stress["memory_mb"]
    print(f"undo and redo {undo}; strokes {stress}; layers and table {layer_mb:.0f} MB; {len(ticks)} ticks")
    print(verdict("worst p95 of a move", max(r["p95"] for r in rows), MOVE_LIMIT_MS, "ms"))
    print(verdict("worst release", max(r["release"] for r in rows), RELEASE_LIMIT_MS, "ms"))
    print(verdict("undo and redo, p95", undo["p95"], UNDO_LIMIT_MS, "ms"))
    print(verdict("paint of 40 points, p95", stress["paint_p95"], PAINT_LIMIT_MS, "ms"))
    print(verdict(f"memory after {options.strokes} strokes", memory, MEMORY_LIMIT_MB, "MB"))
    report = {"moves": rows, "undo": undo, "layer_mb": layer_mb, "stress": stress, "ticks": len(ticks)}
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    scribbles.close()
    viewer.close()


if __name__ == "__main__":
    main()
