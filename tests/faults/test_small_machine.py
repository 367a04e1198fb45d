"""No room: a small file system that fills up, no cache at all, one core, thousands of strokes in one session."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import numpy as np
import psutil
import pytest

from napari_sparseseg import Session
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.tile_store import LABELS
from napari_sparseseg.session import prediction as session_prediction
from napari_sparseseg.slides import ArraySlide
from napari_sparseseg.slides.cache import TILES
from tests.helpers.data import two_textures, write_slide
from tests.helpers.processes import child
from tests.helpers.waiting import wait_until

CONFIG = TrainConfig(patch_px=64, batch_size=2, device="cpu")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MB, where mounting one is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root's rights on Linux")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


@pytest.mark.slow  # every time: the limit on file sizes in test_trust_resources, which takes no rights
@pytest.mark.fault("disk full")
def test_a_disk_that_is_really_full(small_disk, tmp_path):
    """Painting, saving, exporting and the end of a training meet ENOSPC; when there is room, all of it is kept."""
    write_slide(tmp_path / "a.tif", two_textures(256))
    lines = child(
        """
        import os, sys
        from pathlib import Path
        import numpy as np
        from napari_sparseseg import Session
        from napari_sparseseg.config import TrainConfig
        from napari_sparseseg.errors import AnnotationError, ProjectError, TrainingError
        disk, slide = Path(sys.argv[1]), sys.argv[2]
        config = TrainConfig(architecture="scratch", patch_px=64, batch_size=1, device="cpu")
        def try_(what, *kinds):
            try:
                what()
                print("done")
            except kinds as error:
                print(type(error).__name__, error)
        def fill():
            with open(disk / "filler", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        with Session(["a", "b"], config=config) as session:
            session.open(slide)
            a = session.annotations
            a.paint([(40, 20), (200, 90)], 6, 1)
            session.save(disk / "p")
            a.to_geojson(disk / "a.geojson")
            kept = [(disk / n).read_bytes() for n in ("a.geojson", "p.sparseseg/project.json")]
            fill()
            noise = np.random.default_rng(0).random((200, 200)) < 0.5
            def draw():
                a.begin_stroke(2)
                a.paint_mask(0, 20, 40, noise)
                a.commit_stroke()
            try_(draw, AnnotationError)
            print(a.saved)
            try_(lambda: a.to_geojson(disk / "a.geojson"), AnnotationError)
            try_(lambda: session.train(steps=1, wait=True), TrainingError)
            try_(lambda: session.save(disk / "q"), ProjectError, AnnotationError)
            print(kept == [(disk / n).read_bytes() for n in ("a.geojson", "p.sparseseg/project.json")])
            os.unlink(disk / "filler")
            a.paint([(5, 5), (9, 9)], 3, 1)
            print(a.saved, len(a.strokes), a.counts()[2])
            session.save(disk / "p")
            print(*sorted(p.name for p in disk.rglob("*") if p.name.endswith((".part", ".partial"))))
        with Session.load(disk / "p.sparseseg") as session:
            print(session.status.message or "whole", len(session.annotations.strokes), session.annotations.counts()[2])
        """,
        small_disk, tmp_path / "a.tif",
    )  # fmt: skip
    print(*lines, sep="\n")
    assert lines[0].startswith("AnnotationError")
    assert "in memory only" in lines[0]
    assert lines[1] == "False"
    assert lines[2].startswith("AnnotationError")
    assert lines[3].startswith("TrainingError the model could not be saved")
    assert lines[4].startswith(("ProjectError", "AnnotationError"))
    assert lines[5] == "True"
    saved, strokes, pixels = lines[6].split()
    assert (saved, strokes) == ("True", "3")
    assert lines[7:] == ["", f"whole 3 {pixels}"]


def scribbled(session, image):
    session.add(ArraySlide(image, mpp=1.0, name="image"))
    session.annotations.paint([(40, 20), (220, 90)], 6, 1)
    session.annotations.paint([(40, 160), (220, 240)], 6, 2)


def test_no_cache_of_any_kind(tmp_path, monkeypatch):
    """Tiles, feature maps and live tiles of other slides: without any of them the answers are the same."""
    from napari_sparseseg.learning.feature_cache import CacheSettings
    from napari_sparseseg.learning.learner import LearnerSettings

    path, other = write_slide(tmp_path / "a.tif", two_textures(512)), write_slide(tmp_path / "b.tif", two_textures(256))

    def run():
        with Session(["a", "b"], config=CONFIG) as session:
            session.open(path)
            session.annotations.paint([(40, 20), (400, 150)], 6, 1)
            session.annotations.paint([(40, 300), (400, 480)], 6, 2)
            session.train(steps=1, wait=True)
            answers, views = [session.predict((0, 0, 512, 512))[0]], []
            session.live_enabled = True
            for slide, side in ((path, 512), (other, 256), (path, 512)):
                session.open(slide)
                session.look_at((0, 0, side, side), 1.0)
                wait_until(lambda s=slide: session.live is not None and session.live.slide.path == str(s))
                wait_until(lambda n=side: session.live.store.read(LABELS, 0, Box(0, 0, n, n)).all())
                answers.append(session.live.store.read(LABELS, 0, Box(0, 0, side, side)))
                views.append(session.live)
        return answers, views[2] is views[0]

    expected, kept = run()
    assert kept
    no_maps = LearnerSettings(cache=CacheSettings(map_bytes=0))
    monkeypatch.setattr("napari_sparseseg.learning.learner.LearnerSettings", lambda: no_maps)
    monkeypatch.setattr(session_prediction, "KEPT_BYTES", 0)
    with TILES.limited(0):
        found, kept = run()
        assert TILES.bytes == 0
    assert not kept
    for a, b in zip(found, expected, strict=True):
        assert (a == b).mean() > 0.999
    truth = np.where(np.arange(512) < 256, 1, 2)
    assert (expected[0] == truth).mean() > 0.95


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen by sched_setaffinity")
def test_one_core(tmp_path):
    """Training, live view and whole slide end, and say what is there."""
    write_slide(tmp_path / "a.tif", two_textures(512))
    (line,) = child(
        """
        import os, sys
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from pathlib import Path
        import numpy as np
        import tifffile
        from napari_sparseseg import Session
        from napari_sparseseg.config import TrainConfig
        folder = Path(sys.argv[1])
        with Session(["a", "b"], config=TrainConfig(patch_px=64, batch_size=2, device="cpu")) as session:
            session.open(folder / "a.tif")
            session.annotations.paint([(40, 20), (400, 150)], 6, 1)
            session.annotations.paint([(40, 300), (400, 480)], 6, 2)
            session.live_enabled = True
            session.look_at((0, 0, 512, 512), 1.0)
            session.train(steps=3, wait=True)
            session.annotations.paint([(450, 20), (480, 200)], 6, 1)
            labels, _ = session.predict((0, 0, 512, 512))
            session.predict_slide(folder / "a.ome.tif", tissue_only=False)
            step = session.status.step
        truth = np.where(np.arange(512) < 256, 1, 2)
        image = tifffile.imread(folder / "a.ome.tif")
        print(os.cpu_count(), len(os.sched_getaffinity(0)), step, (labels == truth).mean(), (image == truth).mean())
        """,
        tmp_path,
    )  # fmt: skip
    _, cores, step, box, slide = line.split()
    assert cores == "1"
    assert int(step) >= 3
    assert float(box) > 0.95
    assert float(slide) > 0.95


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_strokes_that_are_learned(count):
    """Each stroke takes the same little time, what is learned keeps up, and memory ends somewhere."""
    rng = np.random.default_rng(0)
    with Session(["a", "b"], config=CONFIG) as session:
        scribbled(session, two_textures(768))
        session.train(steps=1, wait=True)
        session.live_enabled = True
        a, before, taken = session.annotations, psutil.Process().memory_info().rss, []
        for k in range(count):
            x = rng.uniform(10, 370) + 384 * (k % 2)
            p = np.array([rng.uniform(10, 750), x])
            began = time.thread_time()
            a.paint([p, p + rng.uniform(-8, 8, 2)], 2, 1 + k % 2)
            taken.append(time.thread_time() - began)
        drawn = len(a.strokes)
        assert drawn > 0.9 * count, "a few change nothing, once much is painted"
        wait_until(lambda: session.status.live_annotation_version == a.version, 200)
        assert session.status.state == "idle", session.status.details
        assert np.mean(taken) < 0.02
        assert np.mean(taken[-100:]) < 10 * np.mean(taken[:100]) + 0.005
        assert psutil.Process().memory_info().rss - before < 1 << 30
        labels, _ = session.predict((0, 0, 768, 768))
        assert (labels == np.where(np.arange(768) < 384, 1, 2)).mean() > 0.95
