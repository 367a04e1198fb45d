"""Ctrl+C in a script or console while strokes are drawn: memory and file hold the same afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_sparseseg import Annotations
from tests.helpers.data import ROOT

ROUNDS = 20
SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from napari_sparseseg import Annotations
for k in range(int(sys.argv[2])):
    drawn = Annotations((96, 96), classes=["stripes", "dots"])
    drawn.attach(Path(sys.argv[1]) / f"{k}.sqlite")
    timer = threading.Timer(0.002 + 0.001 * k, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        for n in range(10_000):
            drawn.paint([(5 + n % 80, 5), (5 + n % 80, 90)], 2, 1 + n % 2)
    except KeyboardInterrupt:
        pass
    else:
        sys.exit("the interrupt was swallowed")
    for n in range(2):
        drawn.paint([(9 + n, 5), (9 + n, 90)], 2, 1)
    drawn.undo()
    print(k, len(drawn.strokes), flush=True)
    drawn.close()
"""


@pytest.mark.fault("Ctrl+C while strokes are drawn")
def test_ctrl_c_loses_no_stroke_and_leaves_the_file_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, str(ROUNDS)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    promised = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert len(promised) == ROUNDS
    assert {k: len(Annotations.load(tmp_path / f"{k}.sqlite").strokes) for k in promised} == promised
