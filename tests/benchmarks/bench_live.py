"""Issue 6's numbers: strokes, live prediction and training together, in the real window.

Run ``python -m tests.benchmarks.bench_live [--json FILE] [--strokes N]`` under a display (``xvfb-run -a``), with
``LP_NUM_THREADS=1`` where GL is software. *answer* runs from the release of the mouse to the first live tile of a model
that was fitted on that stroke. *stall* is how much later than due a 10 ms timer fires; with software GL it holds the
repaint of the canvas too, so the time inside repaints is reported beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-bench-")) / "settings.yaml"))
os.environ.setdefault("NAPARI_SPARSESEG_HOME", tempfile.mkdtemp(prefix="sparseseg-bench-"))

import napari
import numpy as np
import psutil
from qtpy.QtCore import QTimer

from napari_sparseseg.gui.scribble_layer import ScribbleLayer
from napari_sparseseg.samples import sample_scribbles, sample_slide
from tests.gui.mouse import Mouse, line, look_at, pump, wait_until


def summary(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile, maximum."""
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95)), "max": float(np.max(values))}


class Stalls:
    """How much later than due a 10 ms timer fires, and how much of it was the canvas repainting."""

    def __init__(self, viewer: napari.Viewer) -> None:
        self.late: list[float] = []
        self.draws: list[float] = []
        self._last = time.perf_counter()
        self._drawn = 0.0
        self._timer = QTimer()
        self._timer.setInterval(10)
        self._timer.timeout.connect(self._tick)
        self._canvas = viewer.window._qt_viewer.canvas._scene_canvas
        self._started = 0.0
        self._canvas.events.draw.connect(self._before, position="first")
        self._canvas.events.draw.connect(self._after, position="last")

    def start(self) -> None:
        self.late.clear()
        self.draws.clear()
        self._last = time.perf_counter()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    def _before(self, event: object) -> None:
        self._started = time.perf_counter()

    def _after(self, event: object) -> None:
        took = (time.perf_counter() - self._started) * 1e3
        self.draws.append(took)
        self._drawn += took

    def _tick(self) -> None:
        now = time.perf_counter()
        self.late.append(max(0.0, (now - self._last) * 1e3 - 10 - self._drawn))
        self._last, self._drawn = now, 0.0


def measure_answers(viewer, session, mouse: Mouse, stalls: Stalls, strokes: int) -> dict:
    """Strokes by hand at 1:1 while training goes on."""
    layer = next(x for x in viewer.layers if isinstance(x, ScribbleLayer))
    viewer.layers.selection.active = layer
    layer.mode, layer.brush_size = "paint", 12
    answers, moves = [], []
    rng = np.random.default_rng(0)
    for k in range(strokes):
        look_at(viewer, *(float(v) for v in rng.uniform(900, 3200, 2)), zoom=1.0)
        pump(1.0)
        layer.selected_label = 1 + k % 4
        w, h = mouse.size
        at = rng.uniform(0.3, 0.7, 2) * (w, h)
        timing = mouse.drag(line(tuple(at), tuple(at + rng.uniform(-90, 90, 2)), 25), hz=60)
        moves += timing.moves
        released, version = time.perf_counter(), session.annotations.version
        seen: list[float] = []

        def note(_: object, version: int = version, seen: list[float] = seen) -> None:
            if not seen and session.status.live_annotation_version >= version:
                seen.append(time.perf_counter())

        session.live.updated.connect(note)
        wait_until(lambda seen=seen: bool(seen), 60)
        session.live.updated.disconnect(note)
        answers.append(seen[0] - released)
    return {"answer s": summary(answers), "paint move ms": summary(moves)}


def measure_pans(viewer, session, pans: int) -> dict[str, float]:
    """Memory over many pans while tiles are predicted."""
    rng = np.random.default_rng(1)
    process = psutil.Process()
    before = None
    for k in range(pans):
        look_at(viewer, *(float(v) for v in rng.uniform(600, 3500, 2)), zoom=float(rng.choice([0.25, 0.5, 1.0])))
        if k == pans // 4:
            before = process.memory_info().rss
    after = process.memory_info().rss
    return {"rss MB after a quarter": before / 2**20, "rss MB at the end": after / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strokes", type=int, default=12)
    parser.add_argument("--pans", type=int, default=100)
    args = parser.parse_args()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 980)
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    session = widget.session
    session.open(sample_slide())
    pump(1.0)
    session.import_annotations(sample_scribbles())
    mouse, stalls = Mouse(viewer), Stalls(viewer)
    look_at(viewer, 2048, 2048, 1.0)
    started = time.perf_counter()
    session.train(balancing="instance")
    wait_until(lambda: session.live is not None and session.live.store.top.any(), 120)
    result = {"first prediction s": time.perf_counter() - started}
    pump(5)
    stalls.start()
    result |= measure_answers(viewer, session, mouse, stalls, args.strokes)
    stalls.stop()
    result |= {"stall ms": summary(stalls.late), "repaint ms": summary(stalls.draws)}
    result |= measure_pans(viewer, session, args.pans)
    session.stop(wait=False)
    wait_until(lambda: session.status.state == "idle", 20)
    viewer.close()
    pump(0.5)
    print("| what | figure |\n|---|---|")
    for name, value in result.items():
        shown = ", ".join(f"{k} {v:.1f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.1f}"
        print(f"| {name} | {shown} |")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
