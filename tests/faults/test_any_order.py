"""State machines: any order of calls on the store, the tile cache and the session, compared with a plain model."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from napari_sparseseg import Annotations, Session
from napari_sparseseg.config import ClassDef, TrainConfig
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io import load_annotations, save_annotations
from napari_sparseseg.slides.cache import TileCache
from tests.helpers.data import two_textures, write_slide

SHAPE = (300, 400)
PLACE = st.tuples(st.integers(0, 299), st.integers(0, 399))


class Store(RuleBasedStateMachine):
    """Annotations bound to files that are read, copied, left, removed and opened again by others."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.k = 0
        self.a = Annotations(SHAPE, ["a", "b"])
        self.seen = self.a.version
        self.images = [self.image()]  # what undo leads back to, oldest first
        self.undone = []
        self.move()

    def image(self):
        return self.a.read((0, 0, *SHAPE)).copy()

    def drawn(self):
        """An erasure of nothing is no step."""
        if self.a.version > self.seen:
            self.images.append(self.image())
            self.undone = []
        self.seen = self.a.version

    @rule()
    def move(self):
        """Save to another file and go on there, as when a project is saved under another name."""
        self.k += 1
        path = self.folder / f"{self.k}.sqlite"
        self.a.save(path)
        self.a.attach(path)

    @rule(p=PLACE, q=PLACE, radius=st.floats(0.5, 60), label=st.integers(1, 2))
    def paint(self, p, q, radius, label):
        self.a.paint([p, q], radius, label)
        self.drawn()

    @rule(p=PLACE, radius=st.floats(5, 200))
    def erase(self, p, radius):
        self.a.erase([p], radius)
        self.drawn()

    @rule(p=PLACE, side=st.integers(10, 200), dense=st.booleans())
    def polygon(self, p, side, dense):
        y, x = p
        before = self.a.version
        try:
            self.a.fill_polygon([(y, x), (y + side, x), (y, x + side)], 1, dense=dense)
        except AnnotationError:
            assert self.a.version == before
        else:
            self.drawn()

    @precondition(lambda self: len(self.images) > 1)
    @rule()
    def undo(self):
        self.a.undo()
        self.undone.append(self.images.pop())
        self.seen = self.a.version

    @precondition(lambda self: self.undone)
    @rule()
    def redo(self):
        self.a.redo()
        self.images.append(self.undone.pop())
        self.seen = self.a.version

    @rule()
    def abort(self):
        self.a.begin_stroke(1)
        self.a.extend_stroke((10, 10), (200, 300), 20)
        self.a.abort_stroke()

    @rule()
    def somebody_looks(self):
        other = Annotations.load(self.a.path)
        other.paint([(5, 5)], 9, 1)
        other.close()

    @rule()
    def somebody_wants_to_write(self):
        other = Annotations(SHAPE)
        try:
            other.attach(self.a.path)
        except AnnotationError as error:
            assert "another program or window" in str(error)  # noqa: PT017
        else:
            raise AssertionError("two writers")

    @rule()
    def reopen(self):
        path = self.a.path
        self.a.close()
        self.a = Annotations(SHAPE)
        self.a.attach(path)
        self.images, self.undone, self.seen = [self.image()], [], self.a.version

    @rule()
    def removed_under_us(self):
        self.a.path.unlink()
        for label in (1, 2, 1):  # of which two at least change something
            with contextlib.suppress(AnnotationError):
                self.a.paint([(1, 1)], 3, label)
            self.drawn()

    @invariant()
    def memory_is_the_model(self):
        np.testing.assert_array_equal(self.image(), self.images[-1])

    @invariant()
    def the_file_has_it_all(self):
        assert self.a.saved
        found = Annotations.load(self.a.path)
        assert found.version == self.a.version
        assert found.strokes == self.a.strokes or len(found.strokes) == len(self.a.strokes)
        assert found.snapshot().scribbles.levels == self.a.snapshot().scribbles.levels
        assert found.counts() == self.a.counts()

    def teardown(self):
        self.a.close()
        shutil.rmtree(self.folder)


Store.TestCase.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
TestStore = Store.TestCase


class Cache(RuleBasedStateMachine):
    """The tile cache against a list of what was used last."""

    LIMIT = 1000

    def __init__(self):
        super().__init__()
        self.cache, self.model = TileCache(self.LIMIT), OrderedDict()

    def trim(self):
        while sum(self.model.values()) > self.cache.max_bytes:
            self.model.popitem(last=False)

    @rule(owner=st.integers(0, 2), key=st.integers(0, 4), size=st.integers(0, 1100))
    def put(self, owner, key, size):
        self.cache.put(owner, key, np.zeros(size, np.uint8))
        self.model.pop((owner, key), None)
        if size <= self.cache.max_bytes:
            self.model[owner, key] = size
        self.trim()

    @rule(owner=st.integers(0, 2), key=st.integers(0, 4))
    def get(self, owner, key):
        found = self.cache.get(owner, key)
        assert (None if found is None else found.nbytes) == self.model.get((owner, key))
        if found is not None:
            self.model.move_to_end((owner, key))

    @rule(owner=st.integers(0, 2))
    def forget(self, owner):
        self.cache.forget(owner)
        self.model = OrderedDict((k, v) for k, v in self.model.items() if k[0] != owner)

    @rule(limit=st.integers(0, 1000))
    def limit(self, limit):
        self.cache.max_bytes = limit
        self.trim()

    @invariant()
    def bounded(self):
        assert self.cache.bytes == sum(self.model.values()) <= self.cache.max_bytes


Cache.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestCache = Cache.TestCase


class Sessions(RuleBasedStateMachine):
    """A session with slides, strokes, classes, models, exports, saving, closing and opening again, in any order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.paths = [write_slide(self.folder / f"{n}.tif", two_textures(128, k)) for k, n in enumerate("abc")]
        config = TrainConfig(patch_px=64, batch_size=1, device="cpu")
        self.session = Session(["a", "b"], config=config)
        self.kept, self.strokes, self.k = {}, {}, 0  # strokes of slides in the project, and of open ones

    def name(self):
        return Path(self.session.slide.path).name

    @property
    def active(self):
        return self.session.entry is not None

    @rule(k=st.integers(0, 2))
    def open(self, k):
        self.session.open(self.paths[k])
        name = self.paths[k].name
        self.strokes.setdefault(name, self.kept.get(name, 0) if self.session.project else 0)

    @precondition(lambda self: self.active)
    @rule()
    def remove(self):
        name = self.name()
        self.session.remove()
        count = self.strokes.pop(name)
        if self.session.project:
            self.kept[name] = count

    @precondition(lambda self: self.active)
    @rule(label=st.integers(1, 2), y=st.integers(5, 120))
    def paint(self, label, y):
        a, whole = self.session.annotations, (0, 0, 128, 128)
        before = a.read(whole)
        a.paint([(y, 10 if label == 1 else 70), (y, 50 if label == 1 else 110)], 4, label)
        self.strokes[self.name()] += bool((a.read(whole) != before).any())  # the same once more is no stroke

    @precondition(lambda self: self.active)
    @rule()
    def undo(self):
        self.session.annotations.undo()
        self.strokes[self.name()] = len(self.session.annotations.strokes)

    @rule()
    def save(self):
        self.k += 1
        self.session.save(self.folder / f"p{self.k}")
        self.kept = {}

    @precondition(lambda self: self.session.project is not None)
    @rule()
    def close_and_open(self):
        project, before = self.session.project, dict(self.strokes)
        self.session.close()
        self.session = Session.load(project)
        assert self.session.status.message == ""
        assert {Path(e.slide.path).name for e in self.session.entries} >= set(before)
        self.strokes = {**self.kept, **before}
        self.strokes = {n: v for n, v in self.strokes.items() if n in self.open_strokes()}

    @precondition(lambda self: self.active and {1, 2} <= {k for k, n in self.session.annotations.counts().items() if n})
    @rule(steps=st.integers(1, 2), wait=st.booleans())
    def train(self, steps, wait):
        self.session.stop()
        self.session.train(steps=steps, wait=wait)

    @rule(act=st.sampled_from(["pause", "resume", "stop"]))
    def hold(self, act):
        getattr(self.session, act)()

    @precondition(lambda self: self.active and self.session.model is not None)
    @rule(y=st.integers(-20, 100), side=st.integers(1, 90))
    def predict(self, y, side):
        labels, probabilities = self.session.predict((y, 10, side, side))
        ids = {c.id for c in self.session.model.metadata.classes}
        assert labels.shape == probabilities.shape[1:] == (side, side)
        assert set(np.unique(labels)) <= ids | {0}
        assert np.isfinite(probabilities).all()

    @precondition(lambda self: len(self.session.classes) < 5)
    @rule()
    def add_class(self):
        self.k += 1
        self.session.classes = (*self.session.classes, ClassDef(len(self.session.classes) + 1, f"c{self.k}", "#123456"))

    @rule(k=st.integers(0, 1))
    def rename(self, k):
        self.k += 1
        table = list(self.session.classes)
        table[k] = replace(table[k], name=f"c{self.k}")
        self.session.classes = table

    @precondition(lambda self: self.session.model is not None)
    @rule()
    def model_out_and_in(self):
        names = {c.name for c in self.session.classes}
        self.session.save_model(self.folder / "m.safetensors")
        self.session.stop()
        self.session.load_model(self.folder / "m.safetensors")
        trained = {c.name for c in self.session.model.metadata.classes}
        labelled = any(any(e.annotations.counts().values()) for e in self.session.entries)
        assert {c.name for c in self.session.classes} == (names | trained if labelled else trained)

    @precondition(lambda self: self.active)
    @rule(ending=st.sampled_from(["geojson", "xml", "sparseseg"]))
    def export(self, ending):
        path, a = self.folder / f"e.{ending}", self.session.annotations
        save_annotations(a, path, overwrite=True)
        found = load_annotations(path, a.shape, classes=self.session.classes)
        np.testing.assert_array_equal(found.read((0, 0, 128, 128)), a.read((0, 0, 128, 128)))

    @rule(on=st.booleans())
    def look(self, on):
        self.session.live_enabled = on
        self.session.look_at((0, 0, 128, 128), 1.0)

    def open_strokes(self):
        return {Path(e.slide.path).name: len(e.annotations.strokes) for e in self.session.entries}

    @invariant()
    def strokes_are_the_models(self):
        assert self.open_strokes() == self.strokes

    @invariant()
    def it_is_well(self):
        assert self.session.status.state in ("idle", "training", "paused"), self.session.status.details

    def teardown(self):
        self.session.close()
        shutil.rmtree(self.folder)


Sessions.TestCase.settings = settings(max_examples=10, stateful_step_count=16, deadline=None)
TestSessions = Sessions.TestCase
