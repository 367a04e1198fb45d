"""Ctrl+C and other signals: memory and file hold the same afterwards, and a trained model is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from napari_sparseseg import Annotations, load_model
from tests.helpers.data import ROOT, two_textures, write_slide

TRAIN = """
import sys
from napari_sparseseg.cli import main
from napari_sparseseg.session.training import Training
work = Training.train_worker
def told(self):
    done = work(self)
    if self.model is not None:
        print("learned", flush=True)
    return done
Training.train_worker = told
sys.exit(main())
"""
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


@pytest.mark.fault("training in a shell ended by a signal")
@pytest.mark.skipif(os.name == "nt", reason="Windows ends a program by other means")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_in_a_shell_leaves_its_model(tmp_path, number):
    """The terminal is closed, the cluster's time is over: what was learned until then is in the file."""
    slide = write_slide(tmp_path / "a.tif", two_textures(256))
    drawn = Annotations((256, 256), classes=["stripes", "dots"])
    for y in (40, 120, 200):
        drawn.paint([(y, 20), (y, 100)], 6, 1)
        drawn.paint([(y, 150), (y, 240)], 6, 2)
    drawn.to_geojson(tmp_path / "a.geojson")
    model = tmp_path / "m.safetensors"
    run = subprocess.Popen(
        [sys.executable, "-c", TRAIN, "train", str(slide), "--model", str(model), "--seconds", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        while run.stdout.readline() not in ("learned\n", ""):
            pass
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130, said
    assert load_model(model, device="cpu").metadata.classes[0].name == "stripes"
