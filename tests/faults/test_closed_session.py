"""A session that was closed: every act says so, and nothing is written or left running."""

from __future__ import annotations

import threading

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.errors import SessionClosedError
from napari_sparseseg.slides import ArraySlide
from tests.faults.jobs import CLASSES
from tests.helpers.data import two_textures, write_slide

ACTS = {
    "open": lambda s, f: s.open(f / "b.tif"),
    "add": lambda s, f: s.add(ArraySlide(two_textures(64))),
    "remove": lambda s, f: s.remove(),
    "activate": lambda s, f: s.activate(s.left),
    "set_role": lambda s, f: s.set_role("predict"),
    "set_mpp": lambda s, f: s.set_mpp(0.3),
    "annotations": lambda s, f: setattr(s, "annotations", Annotations((256, 256), CLASSES)),
    "draw": lambda s, f: s.annotations.paint([(9, 9), (9, 99)], 3, 1),
    "classes": lambda s, f: setattr(s, "classes", s.classes[:1]),
    "same classes": lambda s, f: setattr(s, "classes", s.classes),
    "import_annotations": lambda s, f: s.import_annotations(f / "a.geojson"),
    "config": lambda s, f: setattr(s, "config", s.config.updated({"patch_px": 96})),
    "train": lambda s, f: s.train(steps=1),
    "pause": lambda s, f: s.pause(),
    "resume": lambda s, f: s.resume(),
    "use_model": lambda s, f: s.use_model(s.model),
    "load_model": lambda s, f: s.load_model(f / "m.safetensors"),
    "save_model": lambda s, f: s.save_model(f / "new.safetensors"),
    "export_model": lambda s, f: s.export_model(f / "new.onnx"),
    "predict": lambda s, f: s.predict((0, 0, 64, 64)),
    "next_region": lambda s, f: s.next_region(),
    "review": lambda s, f: s.review(),
    "accept_region": lambda s, f: s.accept_region((9, 9)),
    "predict_slide": lambda s, f: s.predict_slide(f / "new"),
    "predict_project": lambda s, f: s.predict_project(f / "new"),
    "save": lambda s, f: s.save(s.project),
    "save as": lambda s, f: s.save(f / "new"),
    "undo": lambda s, f: s.history.undo(),
    "redo": lambda s, f: s.history.redo(),
    "undo training": lambda s, f: s.runs.undo(),
    "go to a run": lambda s, f: s.runs.use(s.runs.list()[0].id),
    "name a run": lambda s, f: s.runs.rename(s.runs.list()[0].id, "first"),
    "difference of runs": lambda s, f: s.runs.difference(*(2 * [s.runs.list()[0].id]), (0, 0, 64, 64)),
    "superpixels": lambda s, f: s.clicks.superpixels([(9, 9)], 1),
    "snap": lambda s, f: s.clicks.snap([(9, 9)], 3, 1),
    "accept": lambda s, f: s.clicks.accept([(9, 9)]),
    "take back": lambda s, f: s.clicks.take_back([(9, 9)]),
    "list": lambda s, f: s.strokes.list(),
    "score": lambda s, f: s.strokes.score(),
    "change": lambda s, f: s.strokes.change([1], 2),
    "save preset": lambda s, f: s.presets.save(f / "new.json"),
    "load preset": lambda s, f: s.presets.load(f / "preset.json"),
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("closed")
    for name in ("a.tif", "b.tif"):
        write_slide(folder / name, two_textures(256, len(name)))
    session = Session(CLASSES)
    session.left = session.open(folder / "a.tif")
    session.annotations.paint([(10, 10), (20, 100)], 5, 1)
    session.annotations.paint([(10, 150), (20, 240)], 5, 2)
    session.annotations.to_geojson(folder / "a.geojson")
    session.presets.save(folder / "preset.json")
    session.train(steps=1, patch_px=64, batch_size=1, device="cpu", wait=True)
    session.save_model(folder / "m.safetensors")
    session.save(folder / "p")
    session.classes = (*session.classes[:1], session.classes[1])
    session.close()
    return session, folder


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault("act on a session that is closed")
@pytest.mark.parametrize("name", ACTS)
def test_a_closed_session_accepts_nothing(closed, name):
    session, folder = closed
    before, threads = files(folder), threading.active_count()
    with pytest.raises(SessionClosedError, match="the session is closed"):
        ACTS[name](session, folder)
    assert files(folder) == before
    assert session.slides == ()
    assert threading.active_count() == threads


@pytest.mark.fault("act on a session that is closed")
def test_what_asks_for_nothing_new_is_harmless(closed):
    session, folder = closed
    before = files(folder)
    session.stop()
    session.hold(False)
    session.live_enabled = True
    session.look_at((0, 0, 64, 64), 1.0)
    session.warm_up()
    session.close()
    assert session.status.state == "idle"
    assert session.project == folder / "p.sparseseg"
    assert files(folder) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("sparseseg")]


@pytest.mark.fault("act on a session that is closed")
def test_a_checkpoint_that_comes_late_leaves_the_slides_listed(tmp_path):
    """The last step of a run may end after the session was closed; its model is written, and nothing else changed."""
    session = Session(CLASSES)
    session.open(write_slide(tmp_path / "a.tif", two_textures(256)))
    session.annotations.paint([(10, 10), (20, 100)], 5, 1)
    session.save(tmp_path / "p")
    session.close()
    before = (session.project / "project.json").read_bytes()
    session._keeper.write_checkpoint(lambda project: project.checkpoint.write_bytes(b"late"))
    assert (session.project / "project.json").read_bytes() == before
    assert session.checkpoint.read_bytes() == b"late"
