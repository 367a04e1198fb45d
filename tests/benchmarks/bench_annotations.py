"""Costs of drawing, keeping and importing annotations on a slide of 100,000 x 100,000 pixels; prints a table.

Run: ``python tests/benchmarks/bench_annotations.py``. Targets are those of the design; nothing is asserted.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from napari_sparseseg.annotations import Annotations

SIDE = 100_000
SHAPE = (SIDE, SIDE)


def stroke(rng, points=40):
    radius = float(2 ** rng.uniform(2, 9))
    path = np.cumsum(rng.normal(0, max(4.0, radius / 2), (points, 2)), axis=0) + rng.uniform(5000, SIDE - 5000, 2)
    return path, radius


def told(what, seconds, target=""):
    ms = np.percentile(np.array(seconds) * 1e3, [50, 95, 100])
    print(f"{what:<58} {ms[0]:9.2f} {ms[1]:9.2f} {ms[2]:9.2f}  {target}", flush=True)


def timed(call, *args, **more):
    start = time.perf_counter()
    out = call(*args, **more)
    return time.perf_counter() - start, out


def painting(rng):
    a = Annotations(SHAPE, ["a", "b", "c"])
    told("paint, 40 points, in memory", [timed(a.paint, *stroke(rng), 1 + k % 3)[0] for k in range(150)], "p95 <= 60")
    moves, commits, undos = [], [], []
    for k in range(60):
        path, radius = stroke(rng)
        a.begin_stroke(1 + k % 3)
        moves += [timed(a.extend_stroke, p, q, radius)[0] for p, q in itertools.pairwise(path)]
        commits.append(timed(a.commit_stroke)[0])
        undos.append(timed(a.undo)[0])
    told("move of the pen", moves, "p95 <= 16 with display")
    told("commit", commits)
    told("undo", undos, "<= 30")
    told(
        "snapshot and counts after a stroke",
        [timed(lambda: a.snapshot().counts())[0] for _ in range(10) if a.paint(*stroke(rng), 1) is None],
    )


def over_fine_labels(rng):
    for keep in (None, 0):
        a = Annotations(SHAPE, ["a", "b"])
        stripes = np.zeros((20_000, 64), bool)
        stripes[:, ::2] = True
        a.begin_stroke(1, "fill")
        for x in range(40_000, 60_000, 256):
            a.paint_mask(0, 40_000, x, stripes)
        a.commit_stroke()
        a.begin_stroke(2, keep=keep)
        path = np.linspace((41_000, 41_000), (59_000, 59_000), 60)
        moves = [timed(a.extend_stroke, p, q, 1100.0)[0] for p, q in itertools.pairwise(path)]
        name = f"2200-px brush over {len(a.snapshot().scribbles.levels[0])} fine chunks" + (
            ", preserving" if keep == 0 else ""
        )
        told(name + ": move", moves, "p95 <= 16 with display")
        told(name + ": commit", [timed(a.commit_stroke)[0]])
        told(name + ": undo", [timed(a.undo)[0]])


def memory(rng):
    process = psutil.Process()
    before = process.memory_info().rss
    a = Annotations(SHAPE, ["a", "b", "c"])
    for k in range(2000):
        a.paint(*stroke(rng), 1 + k % 3)
    packed = [data for chunks in a.snapshot().scribbles.levels for data in chunks.values()]
    grown = (process.memory_info().rss - before) / 1e6
    print(f"memory after 2,000 strokes: {grown:.0f} MB resident, {sum(map(len, packed)) / 1e6:.0f} MB labels  (<= 150)")


def files(rng, folder):
    a = Annotations(SHAPE, ["a", "b", "c"])
    a.attach(folder / "a.sqlite")
    told("paint, 40 points, durable", [timed(a.paint, *stroke(rng), 1 + k % 3)[0] for k in range(100)], "p95 <= 60")
    a.close()
    b = Annotations(SHAPE, ["a", "b", "c"])
    for k in range(10_000):
        b.paint(*stroke(rng, 6), 1 + k % 3)
    b.save(folder / "b.sqlite")
    size = (folder / "b.sqlite").stat().st_size / 1e6
    del b
    told(f"open 10,000 strokes ({size:.0f} MB)", [timed(Annotations.load, folder / "b.sqlite")[0]], "<= 1000")


def exchange(rng, folder):
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    features = []
    for k in range(50_000):
        y, x = rng.uniform(0, 30_000, 2)
        radius = rng.uniform(6, 14, 24)
        ring = np.round(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        label = {"classification": {"name": f"cell {k % 3}", "color": [k % 3 * 100, 0, 0]}}
        features.append({"type": "Feature", "geometry": geometry, "properties": label})
    path = folder / "cells.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    seconds, a = timed(Annotations.from_geojson, path, (30_000, 30_000))
    told(f"import 50,000 cells ({path.stat().st_size / 1e6:.0f} MB)", [seconds], "seconds")
    told("export 50,000 cells", [timed(a.to_geojson, folder / "out.geojson")[0]])
    b = Annotations(SHAPE, ["a"])
    corners = [(1000, 1000), (1000, 51_000), (51_000, 40_000), (45_000, 2000)]
    told("fill a polygon of 50,000 pixels a side", [timed(b.fill_polygon, corners, 1)[0]])


def main():
    print(f"{'ms':<58} {'median':>9} {'p95':>9} {'max':>9}  target")
    rng = np.random.default_rng(0)
    painting(rng)
    over_fine_labels(rng)
    memory(rng)
    with tempfile.TemporaryDirectory() as name:
        files(rng, Path(name))
        exchange(rng, Path(name))


if __name__ == "__main__":
    main()
