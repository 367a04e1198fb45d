"""Importing annotations adds to what is drawn, as one step that undo takes back."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg import Annotations, Session

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
