"""What version 0.1.0 left on disk opens with everything in it, and predicts what that version predicted.

The files and what that version said of them were made by ``golden/make.py``.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import shutil

import numpy as np
import pytest
import tifffile
import zarr

from napari_sparseseg import Annotations, Session
from napari_sparseseg.learning.model import load_model
from napari_sparseseg.session import recovery
from napari_sparseseg.slides import open_slide
from tests.helpers.data import ROOT

GOLDEN = ROOT / "tests" / "golden" / "0.1.0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files as on the day that they were written, in another place."""
    place = tmp_path / "old"
    shutil.copytree(GOLDEN, place)
    for path in place.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    for path in place.rglob("project.json"):
        path.write_text(path.read_text().replace("@FOLDER@", json.dumps(str(place))[1:-1]))
    monkeypatch.setenv("NAPARI_SPARSESEG_HOME", str(place / "home"))
    return place


@pytest.fixture(scope="module")
def images():
    with np.load(GOLDEN / "expected.npz") as found:
        return dict(found)


def as_rows(annotations):
    """Strokes and dense regions as in ``expected.json``."""
    return [
        [s.id, s.kind, s.class_id, s.radius, s.points.ravel().tolist(), list(s.rings)]
        for s in (*annotations.strokes, *annotations.dense_regions)
    ]


def same_labels(annotations, images, name):
    box = (0, 0, *annotations.shape)
    np.testing.assert_array_equal(annotations.read(box), images[f"{name} labels"])
    np.testing.assert_array_equal(annotations.read(box, scribbles_only=True), images[f"{name} scribbles"])


def test_a_project_has_every_stroke_class_role_resolution_and_setting(folder, images):
    with Session.load(folder / "project.sparseseg") as session:
        assert [[c.id, c.name, c.colour] for c in session.classes] == EXPECTED["classes"]
        assert dataclasses.asdict(session.config).items() >= EXPECTED["config"].items()
        entries = {entry.slide.path.rpartition("/")[2].partition(".")[0]: entry for entry in session.entries}
        assert list(entries) == [old["name"] for old in EXPECTED["slides"]]
        for old in EXPECTED["slides"]:
            entry = entries[old["name"]]
            assert (entry.role, list(entry.slide.mpp)) == (old["role"], old["mpp"])
            assert as_rows(entry.annotations) == old["strokes"]
            assert entry.annotations.counts() == {int(k): v for k, v in old["counts"].items()}
            same_labels(entry.annotations, images, old["name"])


def test_a_project_goes_on(folder, images):
    """What is drawn into it is there when it is opened again, beside what was."""
    old = EXPECTED["slides"][1]
    with Session.load(folder / "project.sparseseg") as session:
        session.annotations.paint([(240, 10), (240, 40)], 3, 1)
    with Session.load(folder / "project.sparseseg") as session:
        assert session.slide.path.endswith(f"{old['name']}.tif")
        assert as_rows(session.annotations)[:-1] == old["strokes"]
        labels = session.annotations.read((0, 0, 256, 256))
    np.testing.assert_array_equal(labels[:236], images["b labels"][:236])
    assert (labels[238:242, 10:40] == 1).all()


@pytest.mark.parametrize(
    ("name", "path"), [("two-speed", "project.sparseseg/models/model.safetensors"), ("plain", "plain.safetensors")]
)
def test_a_model_predicts_what_it_predicted(folder, images, name, path):
    probabilities = load_model(folder / path, device="cpu").probabilities(tifffile.imread(folder / "a.tif"))
    # another processor adds in another order
    np.testing.assert_allclose(probabilities[:, 64:192:4, 64:192:4], images[name], atol=1e-3)
    assert images[name].std(axis=(1, 2)).max() > 0.05


def test_the_model_of_a_project_says_what_it_is_and_learns_on(folder):
    with Session.load(folder / "project.sparseseg") as session:
        recipe = session.model.metadata
        old = EXPECTED["metadata"]
        assert (recipe.step, recipe.mpp, recipe.encoder) == (old["step"], old["mpp"], old["encoder"])
        assert [[c.id, c.name, c.colour] for c in recipe.classes] == EXPECTED["classes"]
        session.train(steps=1, wait=True)
        assert session.status.step == old["step"] + 1


def test_unsaved_work_of_a_session_that_was_killed_is_offered_whole(folder, images):
    with open_slide(folder / "a.tif") as slide:
        offered = recovery.recoverable(slide.fingerprint)
        assert len(offered) == 1
        found = Annotations.load(recovery.recovered(offered[0], slide.fingerprint))
    assert isinstance(found, Annotations)
    kept = [row for row in EXPECTED["slides"][0]["strokes"] if row[1] != "dense"]  # which it had undone
    assert as_rows(found) == kept
    np.testing.assert_array_equal(found.read((0, 0, *found.shape)), images["a scribbles"])


def test_a_prediction_that_was_killed_is_finished_with_what_is_done(folder, images):
    out = folder / "tall.ome.zarr"
    with Session(autosave=False) as session:
        session.open(folder / "tall.tif")
        session.load_model(folder / "plain.safetensors")
        result = session.predict_slide(out, tile=128, resume=True)
    assert result.shards_resumed == 1
    group = zarr.open_group(out, mode="r")
    labels = group[group.attrs["multiscales"][0]["datasets"][0]["path"]][:]
    # the first of two shards is the one that version 0.1.0 stored
    np.testing.assert_array_equal(labels[:2048], images["tall prediction"][:2048])
    assert (labels != images["tall prediction"]).mean() < 1e-3
    assert sum(row.pixels for row in result.table) == sum(EXPECTED["tall pixels"].values())
