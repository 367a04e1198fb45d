"""One history for strokes, imports and the class table: undo brings back the very labels and the very table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_sparseseg import Annotations, Session
from napari_sparseseg.annotations import Shape
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.slides import ArraySlide

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 300
WHOLE = (0, 0, SIDE, SIDE)


def blank(name: str) -> ArraySlide:
    return ArraySlide(np.full((SIDE, SIDE, 3), 200, np.uint8), mpp=0.5, name=name)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """Annotations of another program: two classes, one of them new, and an object without a class."""
    drawn = Annotations((SIDE, SIDE), ["tumour", "fat"])
    drawn.fill_polygon([(10, 10), (10, 90), (90, 90)], 1)
    drawn.paint([(200, 20), (220, 250)], 9, 2)
    square = {"type": "Polygon", "coordinates": [[[5, 5], [9, 5], [9, 9], [5, 5]]]}
    drawn.set_others([{"type": "Feature", "geometry": square, "properties": {"objectType": "annotation"}}])
    path = tmp_path_factory.mktemp("files") / "cells.geojson"
    drawn.to_geojson(path)
    return path


def state(session: Session, annotations: Annotations | None = None) -> tuple:
    """All that a step may change, of the active slide or of another."""
    a = annotations or session.annotations
    strokes = tuple((s.kind, s.class_id, s.box) for s in (*a.strokes, *a.dense_regions))
    seen = a.read(WHOLE).tobytes(), a.read(WHOLE, scribbles_only=True).tobytes()
    return (*seen, a.classes, session.classes, strokes, tuple(a.counts().items()), len(a.others))


def act(session: Session, kind: str, where: tuple[int, int], choice: int, cells: Path) -> None:
    """What a button, key or mouse does in the window."""
    a, classes = session.annotations, session.classes
    y, x = where
    chosen = classes[choice % len(classes)] if classes else None
    if kind in ("import", "add"):
        if kind == "import":
            session.import_annotations(cells)
        else:
            free = next(i for i in range(1, 256) if i not in {c.id for c in classes})
            session.classes = (*classes, ClassDef(free, f"new {free} {y}", "#123456"))
    elif chosen is None:
        return
    elif kind == "paint":
        a.paint([(y, x), (x, y)], 3 + choice, chosen.id)
    elif kind == "erase":
        a.erase([(y, x), (y, SIDE)], 12)
    elif kind == "polygon":
        a.fill_polygon([(y, x), (y + 40, x), (y, x + 50)], chosen.id)
    elif kind == "fill":
        a.begin_stroke(chosen.id, "fill")
        a.paint_mask(0, y, x, np.ones((35, 50), bool))
        a.commit_stroke()
    elif kind == "accept":
        a.draw([Shape("dense", chosen.id, [np.array([(y, x), (y + 60, x), (y + 60, x + 70)], float)])])
    elif kind == "remove":
        session.classes = [c for c in classes if c.id != chosen.id]
    elif kind == "rename":
        session.classes = [replace(c, name=f"name {chosen.id} {y} {x}") if c is chosen else c for c in classes]
    elif kind == "colour":
        session.classes = [replace(c, colour=f"#{y:03x}{x:03x}") if c is chosen else c for c in classes]
    elif kind == "order":
        session.classes = tuple(reversed(classes))


KINDS = ("paint", "erase", "polygon", "fill", "accept", "import", "add", "remove", "rename", "colour", "order")
ACTS = st.tuples(
    st.sampled_from((*KINDS, "undo", "undo", "redo")), st.tuples(*[st.integers(0, 250)] * 2), st.integers(0, 4)
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(ACTS, min_size=4, max_size=10))
def test_undo_brings_back_the_very_labels_and_the_very_table(acts, cells, tmp_path_factory):
    with Session(["tumour", "stroma", "glass"]) as session:
        session.add(blank("slide"))
        file = tmp_path_factory.mktemp("drawn") / "a.sqlite"
        session.annotations.attach(file)
        annotations = session.annotations
        done, undone = [state(session)], []
        for kind, where, choice in acts:
            if kind == "undo":
                said, told = session.history.next_undo, session.history.undo()
                assert told == said
                assert bool(told) == (len(done) > 1)
                if told:
                    undone.append(done.pop())
            elif kind == "redo":
                assert bool(session.history.redo()) == bool(undone)
                if undone:
                    done.append(undone.pop())
            else:
                act(session, kind, where, choice, cells)
                now = state(session)
                if now != done[-1]:
                    done.append(now)
                    undone.clear()
            assert session.annotations is annotations, "nothing replaces the annotations behind the history"
            assert state(session) == done[-1]
        stored = Annotations.load(file)
        assert state(session, stored)[:3] == done[-1][:3], "the file holds what is seen"
        while session.history.undo():
            done.pop()
            assert state(session) == done[-1]
        assert len(done) == 1


@pytest.fixture
def two():
    """A session with two slides; the first is active."""
    with Session(["tumour", "stroma", "glass"]) as session:
        first = session.add(blank("first"))
        session.add(blank("second"))
        session.activate(first)
        yield session


def on(session: Session, number: int) -> Annotations:
    """The annotations of a slide, which becomes active."""
    session.activate(session.slides[number])
    return session.annotations


def test_a_class_removed_from_two_slides_is_one_step(two):
    first, second = (on(two, n) for n in (0, 1))
    for drawn in (first, second):
        drawn.paint([(50, 50), (50, 200)], 9, 2)
    before = state(two, first), state(two, second)
    two.classes = [c for c in two.classes if c.id != 2]
    assert first.counts().get(2) == second.counts().get(2) is None
    assert two.history.next_undo == "remove stroma"
    on(two, 0)
    two.history.undo()
    assert (state(two, first), state(two, second)) == before
    assert two.history.next_undo == "brush stroke"
    on(two, 1)
    assert two.history.redo() == "remove stroma", "the other slide's history has it too"
    assert [c.id for c in two.classes] == [1, 3]
    assert not first.strokes
    assert not second.strokes


def test_undo_refuses_to_lose_what_was_drawn_on_another_slide(two):
    two.classes = [*two.classes, ClassDef(4, "fat", "#ffff00")]
    on(two, 1).paint([(50, 50), (50, 200)], 9, 4)
    first = on(two, 0)
    with pytest.raises(AnnotationError, match="fat was drawn on second since"):
        two.history.undo()
    assert len(two.classes) == 4
    on(two, 1).undo()
    on(two, 0)
    assert two.history.undo() == "add fat"
    assert [c.name for c in two.classes] == ["tumour", "stroma", "glass"] == [c.name for c in first.classes]
    two.history.redo()
    second = on(two, 1)
    second.paint([(50, 50), (50, 200)], 9, 2)
    two.classes = [c for c in two.classes if c.id != 2]
    second.paint([(90, 50), (90, 200)], 9, 1)
    on(two, 0)
    with pytest.raises(AnnotationError, match="remove stroma also changed second"):
        two.history.undo()
    on(two, 1).undo()
    on(two, 0)
    two.history.undo()
    assert second.counts()[2] > 0


def test_a_renaming_is_undone_under_later_strokes_of_another_slide(two):
    two.classes = [replace(c, name="fat") if c.id == 2 else c for c in two.classes]
    second = on(two, 1)
    second.paint([(50, 50), (50, 200)], 9, 2)
    on(two, 0)
    assert two.history.undo() == "rename stroma to fat"
    assert [c.name for c in second.classes] == ["tumour", "stroma", "glass"]
    assert second.counts()[2] > 0
    on(two, 1)
    assert two.history.next_undo == "brush stroke"
    two.history.undo()
    assert two.history.next_undo == "", "the renaming was undone already"


def test_classes_are_undone_without_a_slide_too():
    with Session(["tumour", "stroma"]) as session:
        session.classes = session.classes[:1]
        assert session.history.undo() == "remove stroma"
        assert [c.name for c in session.classes] == ["tumour", "stroma"]
        assert session.history.redo() == "remove stroma"
        assert session.history.undo() == "remove stroma"
        assert session.history.undo() == ""


def test_an_import_onto_an_empty_slide_is_undone(cells, tmp_path):
    with Session(["tissue", "background"], autosave=True) as session:
        session.add(blank("slide"))
        annotations, before = session.annotations, state(session)
        assert session.import_annotations(cells) == 2
        after = state(session)
        assert [c.name for c in session.classes] == ["tumour", "fat"]
        assert session.history.next_undo == "import of cells.geojson"
        session.history.undo()
        assert state(session) == before
        assert not Annotations.load(annotations.path).strokes
        session.history.redo()
        assert state(session) == after
        ids = [s.id for s in annotations.strokes]
        annotations.paint([(5, 5)], 3, 1)
        assert annotations.strokes[-1].id not in ids
        np.testing.assert_array_equal(Annotations.load(annotations.path).read(WHOLE), annotations.read(WHOLE))
