"""The session from several threads at once, and closed at every moment: no deadlock, no error that nobody caused."""

from __future__ import annotations

import faulthandler
import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Annotations, Session
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import SessionClosedError, SlideError, SparseSegError, TrainingError
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import Model, read_metadata
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import PlainUNet
from napari_sparseseg.session.engine import Engine
from tests.helpers.classes import add_class
from tests.helpers.data import two_textures, write_slide
from tests.helpers.waiting import wait_until

CONFIG = TrainConfig(patch_px=64, batch_size=2, device="cpu")
CLOSED = "closed"


@pytest.fixture(autouse=True)
def _no_deadlock():
    """All stacks are printed and the process ends where threads wait for each other."""
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return [write_slide(folder / f"{k}.tif", two_textures(256, k)) for k in range(3)]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small model."""
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, "x", config=TrainConfig(architecture="scratch"))
    path = tmp_path_factory.mktemp("model") / "start.safetensors"
    Model(metadata, PlainUNet(3, 2, 4, 2), InputScale.for_rgb()).save(path)
    return path


def scribble(session):
    session.annotations.paint([(40, 20), (200, 90)], 6, 1)
    session.annotations.paint([(40, 160), (200, 240)], 6, 2)


def engine_threads():
    return [t for t in threading.enumerate() if t.name.startswith("sparseseg")]


def annotator(session, rng, slides):
    """What a person does with the pen."""
    choice = rng.random()
    a = session.annotations
    if choice < 0.5:
        a.paint([(rng.uniform(0, 256), rng.uniform(0, 256))], 4, rng.choice((1, 2)))
    elif choice < 0.6:
        a.undo()
    elif choice < 0.7:
        a.redo()
    elif choice < 0.8:
        session.open(rng.choice(slides))
    elif choice < 0.85 and len(session.entries) > 1:
        session.remove()
    elif choice < 0.9 and len(session.classes) < 6:
        add_class(a, f"class {len(session.classes)} {rng.random()}")
    elif choice < 0.95:
        session.look_at((0, 0, 256, 256), 1.0)
    else:
        session.config = session.config.updated({"seed": rng.randrange(3)})


def driver(session, rng, folder):
    """What a person, a script and the panel do with the rest."""
    choice = rng.random()
    if choice < 0.25:
        session.train(steps=2)
    elif choice < 0.35:
        session.pause()
    elif choice < 0.5:
        session.resume()
    elif choice < 0.6:
        session.stop(wait=rng.random() < 0.5)
    elif choice < 0.75:
        session.predict((0, 0, 64, 64))
    elif choice < 0.8:
        session.next_region()
    elif choice < 0.85:
        session.live_enabled = rng.random() < 0.7
    elif choice < 0.9:
        session.save(folder / "p")
    elif choice < 0.95:
        session.save_model(folder / "m.safetensors")
    else:
        _ = session.status


def stress(session, rng, seconds, slides, folder):
    """Both at once; what came up that is not an ordinary refusal."""
    end, surprises = time.monotonic() + seconds, []

    def loop(act, *args):
        own = random.Random(rng.random())
        while time.monotonic() < end:
            try:
                act(session, own, *args)
            except SparseSegError:
                pass
            except Exception as error:  # noqa: BLE001 - each is shown
                surprises.append(error)
            time.sleep(0.002)

    threads = [
        threading.Thread(target=loop, args=(annotator, slides)),
        threading.Thread(target=loop, args=(driver, folder)),
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads)
    return surprises


@pytest.mark.parametrize("seed", [0, *[pytest.param(k, marks=pytest.mark.slow) for k in range(1, 22)]])
def test_pen_and_buttons_at_once(slides, tmp_path, seed):
    rng = random.Random(seed)
    failures = []
    with Session(["a", "b"], config=CONFIG, autosave=True) as session:
        session.status_changed.connect(lambda s: failures.append(s.details) if s.state == "failed" else None)
        session.open(slides[0])
        scribble(session)
        surprises = stress(session, rng, 4, slides, tmp_path)
        assert not surprises
        assert not failures
        session.resume()
        session.stop()
        session.open(slides[0])
        scribble(session)
        session.train(steps=1, wait=True)
        labels, probabilities = session.predict((0, 0, 256, 256))
        assert np.isfinite(probabilities).all()
        assert labels.min() >= 1
    assert not engine_threads()


BUSY = {
    "predict": lambda s, folder: s.predict((0, 0, 256, 256)),
    "predict_slide": lambda s, folder: s.predict_slide(folder / "o.ome.tif", geojson=folder / "o.geojson"),
    "save": lambda s, folder: s.save(folder / "q"),
    "export": lambda s, folder: s.annotations.to_geojson(folder / "a.geojson"),
    "save_model": lambda s, folder: s.save_model(folder / "m.safetensors"),
    "load": lambda s, folder: s.load_model(folder / "start.safetensors"),
    "open": lambda s, folder: s.open(folder / "more.tif"),
}


def moments():
    """Of each kind one in CI, and sixty in all."""
    some = [pytest.param(kind, k, id=f"{kind}-{k}") for k, kind in enumerate(BUSY)]
    more = [(kind, k) for k, kind in zip(range(len(BUSY), 63), 8 * list(BUSY), strict=False)]
    return some + [pytest.param(*m, id=f"{m[0]}-{m[1]}", marks=pytest.mark.slow) for m in more]


@pytest.mark.fault("closed at any moment of training and predicting")
@pytest.mark.parametrize(("kind", "seed"), moments())
def test_closing_at_any_moment(slides, start, tmp_path, kind, seed):
    """Whatever is going on, `close` returns, the thread ends, the strokes are on disk and files are whole or absent."""
    rng = random.Random(seed)
    shutil.copy(start, tmp_path / "start.safetensors")
    write_slide(tmp_path / "more.tif", two_textures(256, 9))
    session = Session(["a", "b"], config=CONFIG)
    session.open(slides[0])
    scribble(session)
    session.save(tmp_path / "p")
    session.train()
    session.live_enabled = seed % 2 == 0
    session.look_at((0, 0, 256, 256), 1.0)
    time.sleep(rng.uniform(0, 1.5))
    busy = threading.Thread(target=lambda: _quietly(lambda: BUSY[kind](session, tmp_path)))
    busy.start()
    time.sleep(rng.uniform(0, 0.05))
    session.close()
    busy.join(60)
    assert not busy.is_alive()
    assert not engine_threads()
    unexpected, UNEXPECTED[:] = UNEXPECTED[:], []
    assert not unexpected
    with Session.load(tmp_path / "p.sparseseg") as again:
        first = next(e for e in again.entries if e.slide.path == str(slides[0]))
        assert len(first.annotations.strokes) == 2
        assert again.status.message == ""
    _whole_or_absent(tmp_path)


def _whole_or_absent(folder):
    if (folder / "o.ome.tif").exists():
        assert set(np.unique(tifffile.imread(folder / "o.ome.tif"))) <= {0, 1, 2}
        json.loads((folder / "o.geojson").read_text())
    if (folder / "a.geojson").exists():
        assert len(Annotations.from_geojson(folder / "a.geojson", (256, 256)).classes) == 2
    if (folder / "m.safetensors").exists():
        assert len(read_metadata(folder / "m.safetensors").classes) == 2
    if (folder / "q.sparseseg" / "project.json").exists():
        with Session.load(folder / "q.sparseseg") as again:
            assert again.status.message == ""


UNEXPECTED: list[BaseException] = []
"""What came up in threads that is no refusal."""


def _quietly(act):
    try:
        act()
    except (SparseSegError, RuntimeError) as error:
        if not isinstance(error, SparseSegError) and CLOSED not in str(error):
            UNEXPECTED.append(error)
    except Exception as error:  # noqa: BLE001 - each is shown
        UNEXPECTED.append(error)


def test_closing_a_slide_while_it_is_trained_on(slides):
    """The run goes on with the others."""
    with Session(["a", "b"], config=CONFIG) as session:
        for path in slides:
            session.open(path)
            scribble(session)
        session.train()
        wait_until(lambda: session.status.step >= 2)
        session.remove(session.slides[1])
        step = session.status.step
        wait_until(lambda: session.status.step >= step + 3 or session.status.state != "training")
        assert session.status.state == "training", session.status.details
        session.stop()


def test_calls_that_race_with_close_are_answered():
    for _ in range(200):
        engine = Engine((), lambda error: None)
        engine.call(lambda: None)
        answers = []

        def ask(engine=engine, answers=answers):
            future = engine.submit(lambda: 1)
            try:
                answers.append(future.result(30))
            except SessionClosedError:
                answers.append(0)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for t in askers:
            t.start()
        assert engine.close()
        for t in askers:
            t.join(40)
        assert len(answers) == 3


def test_a_listener_that_fails_does_not_end_the_engine():
    armed, done = [True], threading.Event()

    def worker():
        if armed:
            raise ValueError("work")
        return False

    def listen(error):
        armed.clear()
        done.set()
        raise KeyError("listener")

    engine = Engine((worker,), listen)
    engine.wake()
    assert done.wait(10)
    assert engine.call(lambda: 5) == 5
    assert engine.close()


def test_two_threads_cannot_both_start_training(slides):
    with Session(["a", "b"], config=CONFIG) as session:
        session.open(slides[0])
        scribble(session)
        for _ in range(6):
            started, barrier = [], threading.Barrier(4)

            def start(started=started, barrier=barrier):
                barrier.wait()
                try:
                    session.train(steps=10_000)
                    started.append(1)
                except TrainingError:
                    pass

            threads = [threading.Thread(target=start) for _ in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert len(started) == 1
            session.pause()
            session.stop(wait=False)
            session.stop()


@pytest.mark.fault("slide closed while annotations are imported")
@pytest.mark.parametrize("moment", ["before it draws", "while it draws"])
def test_an_import_into_a_slide_that_was_closed_meanwhile_says_so(slides, tmp_path, monkeypatch, moment):
    """It had answered how many strokes it drew, and they were in no file."""
    other = Annotations((256, 256), ["a", "b"])
    other.paint([(10, 20), (10, 200)], 2, 1)
    other.save(tmp_path / "other.sparseseg")
    with Session(["a", "b"], autosave=True) as session:
        session.open(slides[0])
        name, act = (
            ("counts", Annotations.counts) if moment == "before it draws" else ("take_over", Annotations.take_over)
        )

        def closed_first(annotations, *args):
            monkeypatch.setattr(Annotations, name, act)
            session.remove()
            return act(annotations, *args)

        monkeypatch.setattr(Annotations, name, closed_first)
        with pytest.raises(SlideError, match="closed meanwhile"):
            session.import_annotations(tmp_path / "other.sparseseg")
        session.open(slides[0])
        assert session.import_annotations(tmp_path / "other.sparseseg") == 1
        assert len(session.annotations.strokes) == 1
