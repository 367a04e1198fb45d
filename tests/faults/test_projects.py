"""Projects in trouble: whatever cannot be opened is said, stays listed, and takes nothing else with it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from napari_sparseseg import Session, TrainConfig
from napari_sparseseg.errors import AnnotationError, ProjectError, SlideError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.session.project import Project
from napari_sparseseg.session.recovery import recoverable, recovery_folder
from tests.helpers.classes import add_class
from tests.helpers.data import ROOT, two_textures, write_slide
from tests.helpers.slide_files import write_zarr

STROKE = [(10, 10), (20, 200)]


@pytest.fixture
def slides(tmp_path):
    """Three slides of 256 px; the last does not say its mpp."""
    names = enumerate("abc")
    return [write_slide(tmp_path / f"{n}.tif", two_textures(256, k), 1.0 if k < 2 else None) for k, n in names]


@pytest.fixture
def project(slides, tmp_path):
    with Session(["stripes", "dots"]) as session:
        for k, path in enumerate(slides):
            session.open(path)
            session.annotations.paint(STROKE, 5 + k, 1)
        session.slide.mpp = (0.5, 0.5)
        session.save(tmp_path / "study")
    return tmp_path / "study.sparseseg"


def recorded(project):
    return {Path(s["path"]).name: s for s in json.loads((project / "project.json").read_text())["slides"]}


def labelled(session):
    return [Path(e.slide.path).name for e in session.entries if any(e.annotations.counts().values())]


def test_opening_changes_nothing(project):
    before = (project / "project.json").read_bytes()
    for _ in range(2):
        with Session.load(project) as session:
            assert session.status.message == ""
            assert session.slide.mpp == (0.5, 0.5)
        assert (project / "project.json").read_bytes() == before


def test_a_resolution_set_by_the_user_is_kept(project):
    with Session.load(project) as session:
        session.entries[0].slide.mpp = 0.25
    with Session.load(project) as session:
        assert [e.slide.mpp for e in session.entries] == [(0.25, 0.25), (1, 1), (0.5, 0.5)]


@pytest.mark.fault("slide replaced, damaged or gone")
@pytest.mark.parametrize("fate", ["damaged", "replaced", "gone", "annotations damaged"])
def test_one_slide_in_trouble_leaves_the_others_and_stays_listed(project, slides, fate):
    second = slides[1]
    whole = shutil.copy(second, second.with_suffix(".kept"))
    kept = project / "annotations" / recorded(project)["b.tif"]["annotations"]
    strokes = kept.read_bytes()
    if fate == "damaged":
        second.write_bytes(b"damaged")
    elif fate == "replaced":
        write_slide(second, two_textures(256, 99))
    elif fate == "gone":
        second.unlink()
    else:
        kept.write_bytes(strokes[:200] + b"\x5a" * (len(strokes) - 200))
    with Session.load(project) as session:
        assert "b.tif" in session.status.message
        assert "left out" in session.status.message
        assert labelled(session) == ["a.tif", "c.tif"]
        session.annotations.paint(STROKE, 30, 2)
        if fate == "replaced":
            session.open(second)
            assert not any(session.annotations.counts().values())
    assert set(recorded(project)) == {"a.tif", "b.tif", "c.tif"}
    shutil.move(whole, second)
    kept.write_bytes(strokes)
    with Session.load(project) as session:
        assert sorted(labelled(session)) == ["a.tif", "b.tif", "c.tif"]


def test_a_slide_whose_strokes_could_not_be_kept_is_not_opened(project, slides):
    kept = project / "annotations" / recorded(project)["b.tif"]["annotations"]
    kept.write_bytes(kept.read_bytes()[:200] + b"\x5a" * 20_000)
    with Session.load(project) as session:
        with pytest.raises(AnnotationError, match="damaged"):
            session.open(slides[1])
        assert labelled(session) == ["a.tif", "c.tif"]


def test_a_slide_that_returns_does_not_take_the_others_classes_away(project, slides):
    aside = shutil.move(slides[1], slides[1].with_suffix(".aside"))
    with Session.load(project) as session:
        necrosis = add_class(session.annotations, "necrosis")
        session.annotations.paint([(100, 100), (110, 150)], 8, necrosis)
        pixels = session.annotations.counts()[necrosis]
        assert pixels > 0
    shutil.move(aside, slides[1])
    with Session.load(project) as session:
        assert [c.name for c in session.classes] == ["stripes", "dots", "necrosis"]
        assert sum(e.annotations.counts().get(necrosis, 0) for e in session.entries) == pixels
        assert {tuple(e.annotations.classes) for e in session.entries} == {session.classes}


def test_two_copies_of_a_slide_have_their_own_strokes(slides, tmp_path):
    (tmp_path / "other").mkdir()
    copy = shutil.copy(slides[0], tmp_path / "other" / "a.tif")
    with Session(["stripes", "dots"], autosave=True) as session:
        session.open(slides[0])
        session.annotations.paint(STROKE, 5, 1)
        session.open(copy)
        assert not any(session.annotations.counts().values())
        session.annotations.paint(STROKE, 9, 2)
        session.save(tmp_path / "study")
    with Session.load(tmp_path / "study.sparseseg") as session:
        assert session.status.message == ""
        first, second = (e.annotations.counts() for e in session.entries)
        assert (first[1] > 0, first[2], second[1], second[2] > 0) == (True, 0, 0, True)


def test_a_model_that_cannot_be_loaded_does_not_lock_the_annotations(project):
    (project / "models" / "model.safetensors").write_bytes(b"cut short")
    with Session.load(project) as session:
        assert "its model is left out" in session.status.message
        assert len(labelled(session)) == 3


def test_closing_recovered_work_whose_slide_is_gone_does_not_delete_it(slides):
    with Session(autosave=True) as session:
        fingerprint = session.open(slides[0]).fingerprint
        session.annotations.paint(STROKE, 5, 1)
    (folder,) = recoverable(fingerprint)
    aside = shutil.move(slides[0], slides[0].with_suffix(".aside"))
    with Session.load(folder) as session:
        assert "left out" in session.status.message
    shutil.move(aside, slides[0])
    with Session.load(folder) as session:
        assert labelled(session) == ["a.tif"]


@pytest.mark.fault("two viewers on one project")
def test_looking_at_the_unsaved_work_of_a_running_session_does_not_delete_it(slides, tmp_path):
    with Session(autosave=True) as session:
        fingerprint = session.open(slides[0]).fingerprint
        session.annotations.paint(STROKE, 5, 1)
        with Session.load(recoverable(fingerprint)[0]) as second:
            assert "open in another window" in second.status.message
            second.save(tmp_path / "copy")
        session.annotations.paint(STROKE, 9, 2)
        assert session.annotations.saved
    with Session.load(recoverable(fingerprint)[0]) as again:
        assert again.annotations.counts()[2] > 0


@pytest.mark.fault("two viewers on one project")
def test_a_reader_does_not_overwrite_the_writers_model(project):
    with Session.load(project) as session, Session.load(project) as reader:
        for s in (session, reader):
            s.annotations.paint([(20, 20), (20, 90)], 5, 2)
        before = (project / "project.json").read_bytes()
        reader.train(steps=1, seed=7, wait=True)
        assert reader.checkpoint is None
        assert (project / "project.json").read_bytes() == before
        session.train(steps=1, wait=True)
        assert session.checkpoint == project / "models" / "model.safetensors"


@pytest.mark.fault("clock set back")
def test_a_clock_that_goes_backwards_costs_no_unsaved_work(slides):
    folder = recovery_folder()
    for k in range(60):
        (folder / f"20990101-0000{k:02d}-1-1.sparseseg").mkdir(parents=True)
    prints = []
    for path in slides:
        with Session(autosave=True) as session:
            prints.append(session.open(path).fingerprint)
            session.annotations.paint(STROKE, 5, 1)
    assert [len(recoverable(p)) for p in prints] == [1, 1, 1]
    assert len(list(folder.iterdir())) == 63, "nothing is deleted unasked"


def test_threads_may_write_one_file_at_once(tmp_path):
    path, texts = tmp_path / "a.json", [str(k) * 50_000 for k in range(4)]
    errors = []

    def write(text):
        try:
            for _ in range(40):
                write_atomic(path, lambda temporary: temporary.write_text(text))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(t,)) for t in texts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["a.json"]


READER = """
import sys
from napari_sparseseg import Session, TrainConfig
from tests.helpers.limits import obey_permissions
obey_permissions()
with Session.load(sys.argv[1]) as session:
    print(session.status.message)
    print(sum(sum(e.annotations.counts().values()) for e in session.entries))
    session.annotations.paint([(50, 50), (60, 90)], 7, 2)
    try:
        session.save(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, error)
    session.save(sys.argv[2])
with Session.load(sys.argv[2]) as session:
    print(session.status.message or "whole", session.annotations.counts()[2] > 0)
"""


@pytest.mark.fault("read-only folder")
def test_a_folder_that_may_not_be_written_to_is_opened_to_read(project, slides, tmp_path):
    if os.name == "nt":
        pytest.skip("permissions of Windows folders are not set by chmod")
    with Session.load(project) as session:
        pixels = sum(sum(e.annotations.counts().values()) for e in session.entries)
    out = tmp_path / "out"
    out.mkdir()
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    for path in (project, *project.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", READER, str(project), str(out / "mine.sparseseg")],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
            env={**os.environ, "NAPARI_SPARSESEG_HOME": str(out / "home")},
        )
    finally:
        for path in (project, *project.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert ended.returncode == 0, ended.stderr
    message, count, refusal, again = ended.stdout.splitlines()
    assert "cannot be written to" in message
    assert int(count) == pixels
    assert refusal.startswith("ProjectError")
    assert again == "whole True"
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_a_slide_on_the_network_is_not_asked_for_but_goes_on_when_it_is_opened(tmp_path):
    write_zarr(tmp_path / "web" / "a.zarr", two_textures(256))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address, project = f"http://127.0.0.1:{server.server_port}/a.zarr", tmp_path / "study.sparseseg"
    try:
        with Session(["stripes", "dots"]) as session:
            session.open(address)
            session.annotations.paint(STROKE, 5, 1)
            session.save(project)
            pixels = session.annotations.counts()[1]
        assert recorded(project)["a.zarr"]["path"] == address
        with Session.load(project) as session:
            assert address in session.status.message
            assert not session.entries
            session.open(address)
            assert session.annotations.counts()[1] == pixels
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HOSTILE = {
    "leaves the folder": {"annotations": "../../evil.sqlite"},
    "absolute": {"annotations": "/tmp/evil.sqlite"},
    "backslashes": {"annotations": "..\\evil.sqlite"},
    "device": {"path": "/dev/zero", "relative": ""},
    "another drive": {"path": "\\\\server\\share\\a.tif", "relative": ""},
    "address": {"path": "https://127.0.0.1:9/a.zarr", "relative": ""},
    "nul": {"path": "a\0b", "relative": "a\0b"},
    "long": {"path": "a" * 100_000, "relative": ""},
    "html": {"path": "<img src=x onerror=alert(1)>{0.__class__}%s%n", "relative": ""},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_slide_records_are_refused_and_touch_nothing(project, tmp_path, name):
    file = project / "project.json"
    data = json.loads(file.read_text())
    data["slides"][0] |= HOSTILE[name]
    file.write_text(json.dumps(data))
    around = {p for p in tmp_path.rglob("*") if project not in p.parents}
    try:
        with Session.load(project) as session:
            assert "left out" in session.status.message
            assert labelled(session) == ["b.tif", "c.tif"]
    except ProjectError as error:
        assert len(str(error)) < 2000  # noqa: PT017 - either refusal is right
    assert {p for p in tmp_path.rglob("*") if project not in p.parents} == around
    assert not Path("/tmp/evil.sqlite").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_px", 10**9), ("patch_px", "256"), ("batch_size", 10**9), ("batch_size", 0), ("min_pixels", -1),
        ("dense_fraction", float("nan")), ("learning_rate", float("inf")), ("learning_rate", "fast"), ("seed", -1),
        ("seed", True), ("seed", 10**400), ("encoder", 5), ("encoder", ["x"]), ("device", 3), ("mpp", float("nan")),
        ("mpp", "1"), ("balancing", ["instance"]), ("architecture", {}),
    ],
)  # fmt: skip
def test_a_hostile_setting_has_its_default_and_costs_nothing_else(project, key, value):
    file = project / "project.json"
    data = json.loads(file.read_text())
    data["config"][key] = value
    file.write_text(json.dumps(data))
    opened = Project.open(project)
    assert opened.state.config == TrainConfig()
    assert [key in text for text in opened.problems] == [True]
    assert len(opened.state.slides) == 3


def test_an_oversized_project_file_is_not_read(project):
    with (project / "project.json").open("r+b") as file:
        file.truncate(1 << 34)
    with pytest.raises(ProjectError, match="bytes"):
        Project.open(project)


def test_links_in_a_project_are_refused(project, tmp_path):
    target = tmp_path / "secret"
    target.write_text("secret")
    kept = project / "annotations" / recorded(project)["a.tif"]["annotations"]
    kept.unlink()
    kept.symlink_to(target)
    with Session.load(project) as session:
        assert "link" in session.status.message
        assert labelled(session) == ["b.tif", "c.tif"]
    assert target.read_text() == "secret"


@pytest.mark.fault("slide removed while open")
def test_a_slide_deleted_while_it_is_open(slides, tmp_path):
    """On Unix the open file lives on; on a share it fails. Strokes can be saved in any case."""
    with Session(["stripes", "dots"]) as session:
        session.open(slides[0])
        session.annotations.paint(STROKE, 5, 1)
        slides[0].unlink()
        try:
            assert np.asarray(session.slide.read((0, 0, 256, 256))).shape == (256, 256, 3)
        except SlideError as error:
            assert str(slides[0]) in str(error)  # noqa: PT017 - either is right
        session.annotations.paint(STROKE, 9, 2)
        session.save(tmp_path / "study")
    with Session.load(tmp_path / "study.sparseseg") as session:
        assert "left out" in session.status.message


def test_fifty_slides_in_one_project(tmp_path):
    paths = [write_slide(tmp_path / f"s{k:02d}.tif", two_textures(64, k)) for k in range(50)]
    with Session(["stripes", "dots"]) as session:
        for k, path in enumerate(paths):
            session.open(path)
            session.annotations.paint([(10, 10), (20, 30)], 3, 1 + k % 2)
        session.save(tmp_path / "study")
    with Session.load(tmp_path / "study.sparseseg") as session:
        assert len(labelled(session)) == 50
        assert session.status.message == ""


@pytest.mark.fault("kill -9 while loading a project")
def test_kill_during_loading_forgets_no_slide(project, tmp_path):
    """A child is killed as soon as it has opened the first slide of three."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from napari_sparseseg import Session
        opened = []
        def on_change():
            opened.append(1)
            if len(opened) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        class Watched(Session):
            def __init__(self, **options):
                super().__init__(**options)
                self.slides_changed.connect(on_change)
        Watched.load(sys.argv[1])
        """
    )
    ended = subprocess.run([sys.executable, "-c", script, str(project)], cwd=ROOT, timeout=60)
    assert ended.returncode == -9
    assert set(recorded(project)) == {"a.tif", "b.tif", "c.tif"}
    with Session.load(project) as session:
        assert len(labelled(session)) == 3
