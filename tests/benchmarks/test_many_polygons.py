"""200,000 polygons from a GeoJSON file: memory in proportion to the file, and progress; the CPU time is printed."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from tests.helpers.data import ROOT

POLYGONS, SIDE = 200_000, 100_000
OUTLINE = ((0, 0), (30, 4), (40, 25), (22, 40), (3, 30), (0, 0))
MOST = 10
"""Times the size of the file."""
READ = """
import gc, json, resource, sys, time
import napari_sparseseg.io
from napari_sparseseg import Annotations

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before, told, started = resident(), [], time.process_time()
drawn = Annotations.from_geojson(sys.argv[1], (100_000, 100_000), progress=lambda done, of: told.append((done, of)))
seconds = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
gc.collect()
print(json.dumps([seconds, peak - before, resident() - before, told, len(drawn.strokes)]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="memory from /proc")
def test_two_hundred_thousand_polygons(tmp_path):
    rng, path = random.Random(1), tmp_path / "cells.geojson"
    with path.open("w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for k in range(POLYGONS):
            x, y = rng.randrange(SIDE - 100), rng.randrange(SIDE - 100)
            ring = [[x + a, y + b] for a, b in OUTLINE]
            properties = {"classification": {"name": f"c{k % 5}"}}
            feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
            file.write((", " if k else "") + json.dumps({**feature, "properties": properties}))
        file.write("]}")
    ended = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, peak, kept, told, strokes = json.loads(ended.stdout)
    size = path.stat().st_size
    peak_mb, kept_mb, file_mb = (n / 2**20 for n in (peak, kept, size))
    print(f"{seconds:.0f} s CPU, {peak_mb:.0f} MB at most, {kept_mb:.0f} MB kept for a file of {file_mb:.0f} MB")
    assert strokes == POLYGONS
    assert peak <= MOST * size
    assert told == sorted(told)
    assert len(told) > 20
    assert told[-1] == [POLYGONS, POLYGONS]
