"""Any value in any file of a project may be wrong: it opens, with a note of what is left out, or one line says why not.

Nothing that could be read is lost: what stays unreadable stays listed, and comes back when the value is put right.
"""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_sparseseg import Annotations, Session
from napari_sparseseg.annotations import rescue
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import AnnotationError, ProjectError, SparseSegError
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import Model, load_model
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import PlainUNet
from tests.helpers.data import two_textures, write_slide
from tests.helpers.model_files import model_parts, write_parts

SLIDES = ("a.tif", "b.tif", "c.tif")
DEEP = [[]]
for _ in range(200):
    DEEP = [DEEP]
NASTY = st.sampled_from(
    [
        None, True, -1, 0, 1.5, 256, 1 << 53, 1 << 63, 10**400, float("nan"), float("inf"), "", "x", "x" * 5000, "\0",
        "../../x", "\ud800", [], {}, [[]], [None], [{}], {"id": 1}, DEEP, "train", [1, 2, 3],
    ]
)  # fmt: skip


def places(value, path=()):
    """The paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutations(draw, original):
    """A copy with one value replaced or removed, and where."""
    value = copy.deepcopy(original)
    path = draw(st.sampled_from(sorted(places(value), key=str)))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if draw(st.integers(0, 4)):
        holder[path[-1]] = draw(NASTY)
    else:
        del holder[path[-1]]
    return value, path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a slide that is closed and two that are not, and its ``project.json``."""
    folder = tmp_path_factory.mktemp("made")
    for k, name in enumerate(SLIDES):
        write_slide(folder / name, two_textures(96, k))
    with Session(["stripes", "dots"]) as session:
        for name in SLIDES:
            session.open(folder / name)
            session.annotations.paint([(20, 8), (20, 80)], 1, 1)
        session.set_mpp(0.3)
        session.remove()
        session.save(folder / "p")
    path = folder / "p.sparseseg"
    return path, json.loads((path / "project.json").read_text())


def names_in(data):
    return [r["annotations"] for key in ("slides", "closed") for r in data[key] if isinstance(r, dict)]


@pytest.mark.fault("any value of project.json wrong")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_value_of_a_project_file_may_be_wrong(made, data):
    path, original = made
    changed, at = data.draw(mutations(original))
    (path / "project.json").write_text(json.dumps(changed))
    try:
        try:
            session = Session.load(path)
        except ProjectError as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert "\n" not in said
            assert len(said) < 2000
            return
        with session:
            hit = at[1] if len(at) > 1 and at[0] == "slides" else None
            opened = {Path(e.slide.path).name: len(e.annotations.strokes) for e in session.entries}
            for k, name in enumerate(SLIDES[:2]):
                assert opened.get(name) == 1 or k == hit or session.notes, (at, opened)
                assert k == hit or at[0] == "slides" or opened.get(name) == 1, (at, opened)
            session.set_role("predict") if session.entries else None
        after = json.loads((path / "project.json").read_text())
        if len(at) > 2:
            assert len(after["slides"]) + len(after["closed"]) == 3, (at, after)
    finally:
        (path / "project.json").write_text(json.dumps(original))


@pytest.fixture(scope="module")
def annotation_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "a.sqlite"
    drawn = Annotations((300, 300), ["stripes", "dots"])
    drawn.paint([(20, 8), (20, 80)], 3, 1)
    drawn.fill_polygon([(50, 50), (50, 90), (90, 90)], 2, dense=True)
    drawn.set_others([{"type": "Feature", "geometry": None, "properties": {}}])
    drawn.save(path)
    with closing(sqlite3.connect(path)) as connection:
        return path, {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}


@pytest.mark.fault("any value of an annotation file's head wrong")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_value_of_an_annotation_files_head_may_be_wrong(annotation_file, tmp_path_factory, data):
    source, meta = annotation_file
    changed, _ = data.draw(mutations(meta))
    path = tmp_path_factory.mktemp("one") / "a.sqlite"
    shutil.copy(source, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM meta")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in changed.items()])
    try:
        found = Annotations.load(path)
    except AnnotationError:
        found, _ = rescue(path, (300, 300))
    assert (len(found.strokes), len(found.dense_regions)) == (1, 1)
    if found.shape == (300, 300):  # another valid shape cannot be told from the right one
        assert int(found.read((20, 40, 1, 1))[0, 0]) == 1
        found.paint([(200, 8), (200, 80)], 3, 1)
        found.attach(path.with_name("b.sqlite"))
        found.close()
        assert len(Annotations.load(path.with_name("b.sqlite")).strokes) == 2
    shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, "x", config=TrainConfig(architecture="scratch"))
    Model(metadata, PlainUNet(3, 2, 1, 1), InputScale.for_rgb()).save(path)
    return path, *model_parts(path)


@pytest.mark.fault("any value of a model's recipe wrong")
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_of_a_models_recipe_may_be_wrong(model_file, data):
    path, header, weights = model_file
    recipe, _ = data.draw(mutations(json.loads(header["__metadata__"]["recipe"])))
    changed = {**header, "__metadata__": {**header["__metadata__"], "recipe": json.dumps(recipe)}}
    write_parts(path.with_name("changed.safetensors"), changed, weights)
    with suppress(SparseSegError):  # one clear line; anything else is a fault
        load_model(path.with_name("changed.safetensors"), device="cpu")
