"""Importing annotations adds to what is drawn, as one step that undo takes back."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.cli import main

SHAPE = (1024, 1024)
WHOLE = (0, 0, *SHAPE)


@pytest.fixture
def session(tiny_slide):
    with Session(["gland", "stroma"]) as opened:
        opened.open(tiny_slide)
        opened.annotations.paint([(100, 100), (100, 400)], 20, 1)
        opened.annotations.fill_polygon([(600, 600), (600, 800), (800, 800)], 2, dense=True)
        yield opened


def drawn_elsewhere(path, *, erased: bool):
    other = Annotations(SHAPE, ["stroma", "fat"])
    other.paint([(150, 200), (500, 700)], 15, 2)
    other.fill_polygon([(300, 300), (300, 400), (400, 400)], 1)
    other.fill_polygon([(820, 820), (820, 900), (900, 900)], 2, dense=True)
    if erased:
        other.erase([(300, 450)], 40)
    other.save(path)
    return other.read(WHOLE)


@pytest.mark.parametrize("erased", [False, True])
def test_a_file_is_drawn_over_what_is_there_and_undone_as_one_step(session, tmp_path, erased):
    theirs = drawn_elsewhere(tmp_path / "other.sparseseg", erased=erased)
    mine = session.annotations.read(WHOLE)
    assert session.import_annotations(tmp_path / "other.sparseseg") > 0
    assert [c.name for c in session.classes] == ["gland", "stroma", "fat"]
    renamed = np.array([0, 2, 3])[theirs]  # stroma is class 2 here, fat is new
    np.testing.assert_array_equal(session.annotations.read(WHOLE), np.where(renamed, renamed, mine))
    session.annotations.undo()
    np.testing.assert_array_equal(session.annotations.read(WHOLE), mine)


def test_a_file_of_another_slide_changes_nothing(session, tmp_path):
    far = Annotations((100_000, 100_000), ["Tumor"])
    far.fill_polygon([(90_000, 90_000), (90_000, 91_000), (91_000, 91_000)], 1)
    far.to_geojson(tmp_path / "far.geojson")
    before, version = session.annotations.read(WHOLE), session.annotations.version
    assert session.import_annotations(tmp_path / "far.geojson") == 0
    np.testing.assert_array_equal(session.annotations.read(WHOLE), before)
    assert session.annotations.version == version
    assert [c.name for c in session.classes] == ["gland", "stroma"]


def test_on_a_slide_without_annotations_strokes_stay_as_they_were_drawn(tiny_slide, tmp_path):
    drawn_elsewhere(tmp_path / "other.sparseseg", erased=True)
    with Session() as session:
        session.open(tiny_slide)
        assert session.import_annotations(tmp_path / "other.sparseseg") == 4
        assert [s.kind for s in session.annotations.strokes] == ["brush", "polygon", "erase"]


def state(annotations):
    drawn = (*annotations.strokes, *annotations.dense_regions)
    return annotations.read(WHOLE).tobytes(), sorted((s.kind, s.class_id, s.points.tobytes()) for s in drawn)


@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize("conflict", ["over", "under", "replace"])
def test_what_a_file_does_to_labels_that_are_there_can_be_chosen_and_undone(session, tmp_path, conflict, erased):
    theirs = np.array([0, 2, 3])[drawn_elsewhere(tmp_path / "other.sparseseg", erased=erased)]
    session.annotations.paint([(200, 150), (200, 400)], 20, 1)
    mine, before = session.annotations.read(WHOLE), state(session.annotations)
    pending = session.imports.read(tmp_path / "other.sparseseg")
    assert pending.conflicts == 1, "of what is there, only the brush stroke crosses another class"
    assert state(session.annotations) == before
    session.imports.draw(pending, conflict)
    expected = {
        "over": np.where(theirs, theirs, mine), "under": np.where(mine, mine, theirs), "replace": theirs,
    }[conflict]  # fmt: skip
    after = state(session.annotations)
    np.testing.assert_array_equal(session.annotations.read(WHOLE), expected)
    counts = {c: n for c, n in session.annotations.counts().items() if n}
    assert counts == {c: int((expected == c).sum()) for c in (1, 2, 3) if (expected == c).any()}
    assert session.history.next_undo == "import of other.sparseseg"
    session.history.undo()
    assert state(session.annotations) == before
    session.history.redo()
    assert state(session.annotations) == after


@pytest.mark.parametrize("conflict", ["under", "replace"])
def test_what_was_chosen_is_in_the_file_at_once(session, tmp_path, conflict):
    drawn_elsewhere(tmp_path / "other.sparseseg", erased=True)
    session.save(tmp_path / "p")
    session.import_annotations(tmp_path / "other.sparseseg", conflict)
    again = Annotations.load(session.annotations.path)
    assert state(again) == state(session.annotations)
    ids = [s.id for s in (*again.strokes, *again.dense_regions)]
    assert len(set(ids)) == len(ids)


def test_the_same_labels_are_no_conflict(session, tmp_path):
    session.annotations.save(tmp_path / "mine.sparseseg")
    assert session.imports.read(tmp_path / "mine.sparseseg").conflicts == 0


def test_the_shell_merges_into_a_file(session, tmp_path, capsys):
    theirs = np.array([0, 2, 3])[drawn_elsewhere(tmp_path / "other.sparseseg", erased=False)]
    mine = session.annotations.read(WHOLE)
    for conflict, expected in (
        ("over", np.where(theirs, theirs, mine)), ("under", np.where(mine, mine, theirs)), ("replace", theirs),
    ):  # fmt: skip
        target = tmp_path / f"{conflict}.sparseseg"
        session.annotations.save(target)
        words = ["convert", str(tmp_path / "other.sparseseg"), str(target)]
        assert main(words) == 2
        assert main([*words, "--merge", conflict]) == 0
        merged = Annotations.load(target)
        assert [c.name for c in merged.classes] == ["gland", "stroma", "fat"]
        np.testing.assert_array_equal(merged.read(WHOLE), expected)
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert main(["convert", str(target), str(tmp_path / "a.geojson"), "--merge", "over"]) == 2
    capsys.readouterr()
