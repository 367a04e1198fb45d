"""Class tables out of QuPath's files, as QuPath writes them."""

from __future__ import annotations

import json

import pytest

from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.qupath_classes import read_classes

# QuPath's own default table: colours are alpha, red, green, blue in a signed 32-bit integer
CLASSES = {
    "pathClasses": [
        {"name": "Tumor", "color": -3670016},
        {"name": "Stroma", "color": -6895466},
        {"name": None, "color": -4145152},
        {"name": "Ignore*", "color": [180, 180, 180]},
    ]
}


@pytest.fixture
def project(tmp_path):
    (tmp_path / "classifiers").mkdir()
    (tmp_path / "classifiers" / "classes.json").write_text(json.dumps(CLASSES))
    (tmp_path / "project.qpproj").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("name", ["", "project.qpproj", "classifiers/classes.json"])
def test_a_project(project, name):
    assert read_classes(project / name) == (
        ClassDef(1, "Tumor", "#c80000"),  # 200, 0, 0 in QuPath
        ClassDef(2, "Stroma", "#96c896"),  # 150, 200, 150
        ClassDef(3, "Ignore*", "#b4b4b4"),
    )


def test_classes_that_are_there_keep_id_and_spelling(project):
    known = make_classes([ClassDef(4, "stroma", "#000000"), ClassDef(1, "gland", "#111111")])
    table = read_classes(project, known)
    assert [(c.id, c.name, c.colour) for c in table] == [
        (4, "stroma", "#96c896"), (1, "gland", "#111111"), (2, "Tumor", "#c80000"), (3, "Ignore*", "#b4b4b4"),
    ]  # fmt: skip


def test_objects(tmp_path):
    path = tmp_path / "objects.geojson"
    kinds = [{"name": "A", "color": [1, 2, 3]}, {"names": ["A", "B"]}, "C", None, {"name": "A"}]
    features = [{"type": "Feature", "geometry": None, "properties": {"classification": k}} for k in kinds]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    table = read_classes(path)
    assert [c.name for c in table] == ["A", "A: B", "C"]
    assert table[0].colour == "#010203"


@pytest.mark.parametrize("text", ["", "[", "{}", "[1, 2]", '"x"', "[" * 100_000, '{"pathClasses": [3]}'])
def test_other_files_are_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=r"classes\.json"):
        read_classes(path)
    with pytest.raises(AnnotationError, match="cannot be opened"):
        read_classes(tmp_path / "none.json")
