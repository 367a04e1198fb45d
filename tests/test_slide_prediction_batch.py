"""Many slides with one model, from Python and from the shell: a file each, one summary, an interrupted run goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_sparseseg.cli import main
from napari_sparseseg.cli.common import ProgressLine
from napari_sparseseg.errors import PredictionError, SlideError
from napari_sparseseg.files import result_name
from napari_sparseseg.io.ome_zarr import PredictionStore
from napari_sparseseg.prediction.slide import Progress
from napari_sparseseg.prediction.tiles import PredictionStopped
from napari_sparseseg.session.session import Session
from napari_sparseseg.slides import ArraySlide
from tests.helpers.networks import network


def write_slide(path, side, seed):
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(90, 250, (side // 16, side // 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    network().save(path)
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three slides in two folders, two of them with the same name."""
    a, b = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    return [
        write_slide(a / "case.tif", 512, 1),
        write_slide(b / "case.tif", 640, 2),
        write_slide(b / "other.tif", 512, 3),
    ]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(slides, model, out, **settings):
    with Session() as session:
        for path in slides:
            session.open(path, role="predict")
        session.load_model(model)
        return session.predict_project(out, **settings)


def test_small_slides_at_once_give_what_they_give_one_by_one(slides, model, tmp_path, monkeypatch):
    from napari_sparseseg.learning.model import Model

    both = threading.Barrier(2, timeout=60)
    threads = set()

    def meeting(self, *args, probabilities=Model.probabilities, **kwargs):
        if threading.get_ident() not in threads and len(threads) < 2:
            threads.add(threading.get_ident())
            both.wait()  # passes only where two slides are predicted at the same time
        return probabilities(self, *args, **kwargs)

    alone = predicted(slides, model, tmp_path / "alone", workers=1)
    monkeypatch.setattr(Model, "probabilities", meeting)
    monkeypatch.setattr(Model, "strip", lambda *_: None)
    told = []
    together = predicted(slides, model, tmp_path / "together", workers=2, progress=told.append)
    assert len(threads) == 2
    assert [r.output.name for r in together.results] == [r.output.name for r in alone.results]
    assert (tmp_path / "together" / "summary.csv").read_text() == (tmp_path / "alone" / "summary.csv").read_text()
    for a, b in zip(alone.results, together.results, strict=True):
        labels = [np.asarray(PredictionStore(r.output, "r").labels[0]) for r in (a, b)]
        assert (labels[0] == labels[1]).mean() > 0.999  # in tiles, not in strips
    shares = [state.fraction for state in told]
    assert shares == sorted(shares)
    assert told[-1].fraction == 1.0


def test_a_small_slide_that_fails_keeps_the_others_and_a_stop_ends_all(slides, model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "case-2.ome.zarr").write_text("in the way")
    batch = predicted(slides, model, out, workers=2)
    assert [r.output.name for r in batch.results] == ["case.ome.zarr", "other.ome.zarr"]
    assert [slide for slide, _ in batch.failed] == [str(slides[1])]
    stop = threading.Event()
    with pytest.raises(PredictionStopped):
        predicted(slides, model, tmp_path / "stopped", workers=2, stop=stop, progress=lambda _: stop.set())
    finished = sorted(p.name for p in (tmp_path / "stopped").glob("*.ome.zarr"))
    assert len(finished) < 3
    again = predicted(slides, model, tmp_path / "stopped", workers=2, resume=True)
    assert len(again.results) == 3


def test_one_summary_over_slides_that_are_trained_on_held_out_or_only_predicted(slides, model, tmp_path):
    with Session() as session:
        for path, role in zip(slides, ("train", "held-out", "predict"), strict=True):
            session.open(path, role=role)
        session.load_model(model)
        batch = session.predict_project(tmp_path / "out")
        with pytest.raises(PredictionError, match=r"summary\.csv exists"):
            session.predict_project(tmp_path / "out")
    assert [r.output.name for r in batch.results] == ["case.ome.zarr", "case-2.ome.zarr", "other.ome.zarr"]
    assert batch.failed == ()
    rows = rows_of(batch.summary)
    assert len(rows) == 3 * 3
    assert [row["path"] for row in rows[::3]] == [str(path) for path in slides], "two slides have the same name"
    for result in batch.results:
        labels = np.asarray(PredictionStore(result.output, "r").labels[0])
        mine = rows[:3]
        rows = rows[3:]
        for row in mine:
            pixels = int((labels == int(row["class_id"])).sum())
            assert int(row["pixels"]) == pixels
            assert float(row["mm2"]) == pytest.approx(pixels * 0.25e-6, abs=1e-9)
            assert float(row["percent"]) == pytest.approx(100 * pixels / labels.size, abs=1e-3)


def test_slides_of_a_project_are_removed_given_roles_and_found_again_where_they_were_moved(slides, tmp_path):
    slides = [Path(shutil.copy(path, tmp_path / f"{k}.tif")) for k, path in enumerate(slides)]
    with Session() as session:
        for path in slides:
            session.open(path)
        session.annotations.paint([(20, 20)], 5, 1)
        painted = session.annotations.counts()
        session.set_role("held-out")
        session.set_role("predict", session.slides[0])
        with pytest.raises(SlideError, match="exam"):
            session.set_role("exam")
        session.slide.mpp = 0.25
        session.save(tmp_path / "study")
        session.remove(session.slides[1])
        assert [Path(s.path) for s in session.slides] == [slides[0], slides[2]]
    moved = tmp_path / "archive" / "renamed.tif"
    moved.parent.mkdir()
    slides[2].rename(moved)
    with Session.load(tmp_path / "study.sparseseg") as session:
        assert [e.role for e in session.entries] == ["predict"]
        slide = session.open(moved)
        assert slide.mpp == (0.25, 0.25)
        assert [e.role for e in session.entries] == ["predict", "held-out"]
        assert session.annotations.counts() == painted
        with pytest.raises(SlideError, match="not open"):
            session.remove(ArraySlide(np.zeros((8, 8, 3), np.uint8)))
    with Session.load(tmp_path / "study.sparseseg") as session:
        assert [Path(s.path) for s in session.slides] == [slides[0], moved]


def test_the_shell_names_slides_that_fail_and_predicts_the_others(slides, model, tmp_path, capsys):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0nothing")
    out = tmp_path / "out"
    args = ["predict", str(broken), *map(str, slides), "--model", str(model), "--output", str(out)]
    assert main([*args, "--uncertainty", "--ome-zarr", "0.5", "--min-area", "0"]) == 2
    told = capsys.readouterr()
    assert "1 slides failed" in told.err
    assert "broken.tif" in told.err
    assert "100%, write" in told.err
    assert len(rows_of(out / "summary.csv")) == 9
    store = PredictionStore(out / "case-2.ome.zarr", "r")
    assert store.uncertainty
    assert main(["predict", *map(str, slides), "--model", str(model), "--output", str(out), "--json"]) == 2
    capsys.readouterr()
    assert main([*args[:1], *args[2:], "--overwrite", "--flips", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [s["objects"] is not None for s in answer["slides"]] == [True] * 3


def test_the_shell_predicts_a_project_by_its_own_model(slides, model, tmp_path, capsys):
    project, out = tmp_path / "study.sparseseg", tmp_path / "out"
    with Session() as session:
        for path in slides[:2]:
            session.open(path)
        session.save(project)
    assert main(["predict", str(project), "--output", str(out)]) == 2
    assert "model" in capsys.readouterr().err
    with Session.load(project) as session:
        session.load_model(model)
        session.save(project)
        assert main(["predict", str(project), "--output", str(out)]) == 0
    assert "case.tif" not in capsys.readouterr().err, "no slide is left out while the project is open elsewhere"
    assert [row["slide"] for row in rows_of(out / "summary.csv")[::3]] == ["case.tif", "case.tif"]
    given = ["--output", str(out), "--model", str(model)]
    assert main(["predict", str(project), str(slides[2]), *given]) == 2
    assert main(["predict", str(slides[2]), "--output", str(out)]) == 2
    assert "--model" in capsys.readouterr().err


def test_predicting_a_project_by_another_model_changes_nothing_in_it(slides, model, tmp_path):
    project = tmp_path / "study.sparseseg"
    with Session(["fat", "nerve"]) as session:
        session.open(slides[0])
        session.annotations.paint([(50, 50), (90, 90)], 10, 1)
        session.save(project)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    given = ["--output", str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    assert main(["predict", str(project), *given]) == 0
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/H24.01234 A1.svs", "H24.01234 A1"), ("H24.01234 A2.OME.TIF", "H24.01234 A2"), ("x.ome.zarr", "x"),
        ("x.y.ndpi", "x.y"), ("no suffix", "no suffix"), ("v1.2", "v1.2"), (".svs", ".svs"),
        ("https://h/a.b.zarr", "a.b"),
    ],
)  # fmt: skip
def test_results_have_the_whole_name_of_their_slide_without_its_suffix(path, name):
    assert result_name(path) == name


def test_slides_whose_names_differ_behind_a_dot_have_results_of_their_own(model, tmp_path, capsys):
    slides = [write_slide(tmp_path / f"H24.01234 A{k}.tif", 512, k) for k in (1, 2)]
    out = tmp_path / "out"
    assert main(["predict", *map(str, slides), "--model", str(model), "--output", str(out)]) == 0
    for k in (1, 2):
        single = tmp_path / "single"
        assert main(["predict", str(slides[k - 1]), "--model", str(model), "--output", str(single)]) == 0
        for folder in (out, single):
            assert (folder / f"H24.01234 A{k}.ome.zarr").is_dir()
    capsys.readouterr()


def test_ctrl_c_keeps_what_is_done(model, tmp_path):
    """A real interrupt of a real command; the second run goes on with the first one's shards."""
    slide = write_slide(tmp_path / "large.tif", 6144, 4)
    out = tmp_path / "o.ome.zarr"
    command = [sys.executable, "-m", "napari_sparseseg", "predict", slide, "--model", model, "--output", out, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell that runs this in the background has interrupts ignored, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGINT, before)
    journal = tmp_path / "o.ome.zarr.partial" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and '"shard"' in journal.read_text()):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    assert not out.exists()
    assert journal.read_text().count('"shard"') >= 1


def test_progress_is_a_line_in_a_terminal_and_lines_in_a_log():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen = [Progress("predict", n, 100, 10.0, 2.5, 100.0 - n) for n in (50, 50, 75)]
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        line = ProgressLine("a.svs", stream)
        for progress in (*seen, Progress("write", 1, 1, 0.1, 2.5, 0.0)) * 2:
            line(progress)
            time.sleep(0.11)
    last = "a.svs: 100%, write, 2.50 MP/s"
    lines = [line.strip() for line in log.getvalue().splitlines() if line.strip()]
    assert lines == ["a.svs: 0%", last] * 2, "ten seconds apart, and at the end of each of two slides"
    shown = [line.strip() for line in terminal.getvalue().splitlines() if line.strip()]
    assert "a.svs: 46%, predict, 2.50 MP/s, 00:50 left" in shown
    assert shown[-1] == last
    assert terminal.getvalue().count("\n") == 2
