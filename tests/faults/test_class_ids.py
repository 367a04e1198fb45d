"""Labels keep the name of their class: in merges of projects, and on slides that are not open while classes change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from napari_sparseseg import Session
from napari_sparseseg.config import ClassDef
from tests.helpers.data import ROOT, two_textures, write_slide

SIDE = 96
SLIDES = ("a.tif", "b.tif", "c.tif")
NAMES = ("tumour", "stroma", "glass", "fat")
ROLES = st.sampled_from(["train", "held-out", "predict"])
MPPS = st.sampled_from([None, (0.3, 0.3), (0.5, 0.5)])


@dataclass(frozen=True)
class Part:
    """A slide in one of the projects; `rows` says which class is drawn where."""

    rows: tuple[int, ...]
    role: str
    mpp: tuple[float, float] | None
    fate: str


@st.composite
def projects(draw):
    """Class names in the order of their ids, and what is drawn on some of the slides, as numbers of classes."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(2, 4))]
    rows = st.lists(st.integers(0, len(names) - 1), max_size=3).map(tuple)
    fates = st.sampled_from(["open", "open", "closed", "missing"])
    parts = draw(st.dictionaries(st.sampled_from(SLIDES), st.builds(Part, rows, ROLES, MPPS, fates), min_size=1))
    return names, parts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merges")
    for k, name in enumerate(SLIDES):
        write_slide(folder / name, two_textures(SIDE, k))
    return folder


def y_of(row, *, ours):
    return 8 * row + (44 if ours else 4)


def draw_project(place, project, path, *, ours):
    """A session with the slides of a project, saved; those that are closed are closed."""
    names, parts = project
    with Session(names) as session:
        for name, part in parts.items():
            session.open(place / name, role=part.role)
            if part.mpp is not None:
                session.set_mpp(part.mpp)
            for row, number in enumerate(part.rows):
                y = y_of(row, ours=ours)
                session.annotations.paint([(y, 8), (y, 80)], 1, 1 + number)
        for slide in session.slides:
            if parts[Path(slide.path).name].fate == "closed":
                session.remove(slide)
        session.save(path)


def open_project(place, project, path):
    """A session on a saved project; slides that are missing cannot be opened."""
    missing = [name for name, part in project[1].items() if part.fate == "missing"]
    for name in missing:
        (place / name).rename(place / f"{name}.aside")
    try:
        return Session.load(path)
    finally:
        for name in missing:
            (place / f"{name}.aside").rename(place / name)


def name_at(session, y):
    label = int(session.annotations.read((y, 40, 1, 1))[0, 0])
    return {c.id: c.name for c in session.classes}.get(label)


@pytest.mark.fault("merge of any two projects")
@settings(max_examples=10, deadline=None)
@given(theirs=projects(), ours=projects())
def test_a_merge_keeps_every_label_under_the_name_of_its_class(place, theirs, ours):
    folder = Path(tempfile.mkdtemp())
    try:
        draw_project(place, theirs, folder / "theirs.sparseseg", ours=False)
        draw_project(place, ours, folder / "ours.sparseseg", ours=True)
        with open_project(place, ours, folder / "ours.sparseseg") as session:
            session.save(folder / "theirs.sparseseg", exists="merge")
        shutil.rmtree(folder / "ours.sparseseg")
        with Session.load(folder / "theirs.sparseseg") as session:
            for name in theirs[1] | ours[1]:
                slide = session.open(place / name)
                kept = theirs[1].get(name) or ours[1][name]
                assert session.entry.role == kept.role
                assert slide.mpp == (kept.mpp or (1.0, 1.0))
                for (names, parts), mine in ((theirs, False), (ours, True)):
                    for row, number in enumerate(parts[name].rows if name in parts else ()):
                        assert name_at(session, y_of(row, ours=mine)) == names[number]
    finally:
        shutil.rmtree(folder)


@pytest.mark.fault("class removed and its id used again while a slide is not open")
@pytest.mark.parametrize("how", ["in memory", "unsaved", "project", "missing", "read-only"])
def test_an_id_that_is_used_again_renames_no_stroke(place, tmp_path, how):
    a, b = (shutil.copy(place / name, tmp_path / name) for name in SLIDES[:2])
    path = tmp_path / "p.sparseseg"

    def strike(session):
        stripes, _ = session.classes
        session.classes = [stripes]
        session.classes = [stripes, ClassDef(2, "fibre", "#112233")]
        session.classes = [ClassDef(1, "bands", "#445566"), ClassDef(2, "fibre", "#112233")]
        if session.slides:
            session.annotations.paint([(70, 8), (70, 80)], 1, 2)

    with Session(["stripes", "dots"], autosave=how == "unsaved") as session:
        session.open(a)
        session.open(b)
        for y, number in ((20, 1), (40, 2)):
            session.annotations.paint([(y, 8), (y, 80)], 1, number)
        if how in ("project", "missing", "read-only"):
            session.save(path)
        if how in ("in memory", "unsaved", "project"):
            session.remove()
            strike(session)
            if how == "project":
                session.close()
                session = Session.load(path)
            session.open(b)
            assert [name_at(session, y) for y in (20, 40)] == ["bands", "dots"]
            session.close()
            return
    aside = Path(b).rename(tmp_path / "aside.tif")
    with Session.load(path, read_only=how == "read-only") as session:
        strike(session)
        if how == "read-only":
            aside.rename(b)
            session.open(b)
            assert [name_at(session, y) for y in (20, 40)] == ["bands", "dots"]
            return
    aside.rename(b)
    for _ in range(2):
        with Session.load(path) as session:
            assert session.notes == ()
            session.open(b)
            assert [name_at(session, y) for y in (20, 40)] == ["bands", "dots"]
            session.open(a)
            assert name_at(session, 70) == "fibre"


class Names(RuleBasedStateMachine):
    """Slides come and go, classes too; `drawn` says which class every row of every slide has."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        for k, name in enumerate(SLIDES):
            write_slide(self.folder / name, two_textures(SIDE, k))
        self.session = Session(["c0", "c1"], autosave=True)
        self.drawn = {name: {} for name in SLIDES}
        self.made = 1

    @property
    def open_names(self):
        return [Path(slide.path).name for slide in self.session.slides]

    @rule(k=st.integers(0, 2))
    def open(self, k):
        self.session.open(self.folder / SLIDES[k])

    @precondition(lambda self: self.session.slides)
    @rule()
    def close(self):
        self.session.remove()

    @precondition(lambda self: self.session.slides)
    @rule(row=st.integers(0, 9), pick=st.integers(0, 9))
    def paint(self, row, pick):
        c = self.session.classes[pick % len(self.session.classes)]
        y = y_of(row, ours=False)
        self.session.annotations.paint([(y, 8), (y, 80)], 1, c.id)
        self.drawn[Path(self.session.slide.path).name][row] = c.name

    @precondition(lambda self: len(self.session.classes) > 1)
    @rule(pick=st.integers(0, 9))
    def remove_class(self, pick):
        gone = self.session.classes[pick % len(self.session.classes)]
        self.session.classes = [c for c in self.session.classes if c is not gone]
        for name in self.open_names:
            self.drawn[name] = {row: c for row, c in self.drawn[name].items() if c != gone.name}

    @rule(again=st.booleans())
    def add_class(self, again):
        """With the smallest free id, under a new name or one that slides which are not open still have."""
        taken = {c.name for c in self.session.classes}
        old = sorted({c for rows in self.drawn.values() for c in rows.values()} - taken) if again else []
        self.made += 1
        name = old[0] if old else f"c{self.made}"
        free = next(n for n in range(1, 99) if n not in {c.id for c in self.session.classes})
        self.session.classes = [*self.session.classes, ClassDef(free, name, "#123456")]

    @rule(pick=st.integers(0, 9))
    def rename_class(self, pick):
        self.made += 1
        old = self.session.classes[pick % len(self.session.classes)]
        new = ClassDef(old.id, f"c{self.made}", old.colour)
        self.session.classes = [new if c is old else c for c in self.session.classes]
        for rows in self.drawn.values():
            rows.update({row: new.name for row, c in rows.items() if c == old.name})

    @rule()
    def save(self):
        self.made += 1
        self.session.save(self.folder / f"p{self.made}")

    @precondition(lambda self: self.session.project is not None and any(self.drawn.values()))
    @rule(missing=st.booleans())
    def quit_and_return(self, missing):
        project = self.session.project
        self.session.close()
        if missing:
            (self.folder / SLIDES[0]).rename(self.folder / "aside")
        self.session = Session.load(project, autosave=True)
        if missing:
            (self.folder / "aside").rename(self.folder / SLIDES[0])

    @invariant()
    def names_are_right(self):
        names = {c.id: c.name for c in self.session.classes}
        for entry in self.session.entries:
            found = {}
            for row in range(10):
                if label := int(entry.annotations.read((y_of(row, ours=False), 40, 1, 1))[0, 0]):
                    found[row] = names[label]
            assert found == self.drawn[Path(entry.slide.path).name]

    def teardown(self):
        for k in range(3):
            self.open(k)
            self.names_are_right()
        self.session.close()
        shutil.rmtree(self.folder)


Names.TestCase.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
TestNames = Names.TestCase


KILLED = """
import os, signal, sys
from napari_sparseseg import Session
from napari_sparseseg.annotations.autosave import Autosave
from napari_sparseseg.config import ClassDef
from napari_sparseseg.session.project import Project

left = int(sys.argv[2])
def counted(method):
    def write(*args):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args)
    return write

with Session.load(sys.argv[1]) as session:
    for owner, name in ((Autosave, "write"), (Project, "write")):
        setattr(owner, name, counted(getattr(owner, name)))
    table = session.classes
    session.classes = [ClassDef(1, "bands", "#445566"), ClassDef(3, "new", "#778899")]
"""


@pytest.mark.fault("kill -9 between the annotation files while the class table changes")
@pytest.mark.skipif(os.name == "nt", reason="killed by a signal")
def test_a_class_table_changes_everywhere_or_nowhere(place, tmp_path):
    """Killed before the first, second, ... write: all have the old table and labels, or all have the new ones."""
    tables = set()
    for writes in range(8):
        path = tmp_path / f"p{writes}.sparseseg"
        with Session(["stripes", "dots"]) as session:
            for name in SLIDES:
                session.open(place / name)
                for y, number in ((20, 1), (40, 2)):
                    session.annotations.paint([(y, 8), (y, 80)], 1, number)
            session.remove()
            session.save(path)
        ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(writes)], cwd=ROOT, timeout=60)
        with Session.load(path) as session:
            assert session.notes == ()
            tables.add(names := tuple(c.name for c in session.classes))
            for name in SLIDES[:2]:
                session.open(place / name)
                assert [name_at(session, y) for y in (20, 40)] == (
                    ["bands", None] if names == ("bands", "new") else ["stripes", "dots"]
                )
            session.open(place / SLIDES[2])
            assert [name_at(session, y) for y in (20, 40)] == [names[0], "dots"]
        if ended.returncode == 0:
            break
    assert ended.returncode == 0
    assert tables == {("stripes", "dots"), ("bands", "new")}
