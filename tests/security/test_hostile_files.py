"""Files from strangers: nothing runs, nothing is written elsewhere, nothing large is allocated."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_sparseseg import Annotations, Session
from napari_sparseseg.cli import main
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.errors import ModelError, SparseSegError
from napari_sparseseg.io import load_annotations, save_annotations
from napari_sparseseg.learning.model_file import MAX_HEADER, ModelMetadata, read_metadata
from napari_sparseseg.session.project import Project
from tests.helpers.data import ROOT, labelled_polygon, two_textures, write_slide
from tests.helpers.model_files import model_file

TEXT = '<img src=x onerror="alert(1)">{0.__class__.__mro__} %s %n %x \u202e {config}'


def good_recipe(**changes):
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, "tf_efficientnet_lite0").to_json()
    return metadata | {"extra": {"net": {}, "input": {}}} | changes


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_under_any_name_is_not_opened(tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "m.safetensors"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=protocol))
        with pytest.raises(ModelError):
            read_metadata(path)
        with pytest.raises(SparseSegError), Session() as session:
            session.load_model(path)
    assert not mark.exists()


def test_headers_that_claim_too_much_are_not_read(tmp_path):
    for length in (MAX_HEADER + 1, 1 << 40, (1 << 64) - 1, 0, 1):
        with pytest.raises(ModelError):
            read_metadata(model_file(tmp_path / "m.safetensors", good_recipe(), length=length))
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)
    with pytest.raises(ModelError):
        read_metadata(path)


DEEP = "[" * 100_000 + "]" * 100_000
RECIPES = {
    "no json": "{",
    "deep": DEEP,
    "a list": "[]",
    "null": "null",
    "a number": "1e999",
    "no classes": good_recipe(classes=[]),
    "many classes": good_recipe(classes=[{"id": 1, "name": str(k), "colour": "#000000"} for k in range(9999)]),
    "class 0": good_recipe(classes=[{"id": 0, "name": "a", "colour": "#000000"}]),
    "class of text": good_recipe(classes="ab"),
    "colour of code": good_recipe(classes=[{"id": 1, "name": "a", "colour": "url(http://x)"}]),
    "id of text": good_recipe(classes=[{"id": "1", "name": "a", "colour": "#000000"}]),
    "name of number": good_recipe(classes=[{"id": 1, "name": 5, "colour": "#000000"}]),
    "mpp NaN": json.dumps(good_recipe()).replace('"mpp": 1.0', '"mpp": NaN'),
    "mpp huge": good_recipe(mpp=1e308),
    "mpp negative": good_recipe(mpp=-1),
    "mpp 0": good_recipe(mpp=0),
    "mpp text": good_recipe(mpp="1"),
    "step text": good_recipe(step={"a": 1}),
    "channels number": good_recipe(channels=5),
    "many channels": good_recipe(channels=["c"] * 10_000),
    "encoder an address": good_recipe(encoder=["hf-hub:evil/x"]),
    "config huge": good_recipe(config={"patch_px": 10**12}),
    "config no table": good_recipe(config=[1]),
    "extra text": good_recipe(extra="x"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_hostile_recipes_are_refused(tmp_path, name):
    assert read_metadata(model_file(tmp_path / "good.safetensors", good_recipe())).mpp == 1.0
    path = model_file(tmp_path / "m.safetensors", RECIPES[name])
    with pytest.raises(ModelError) as caught:
        read_metadata(path)
    assert len(str(caught.value)) < 1000


NETS = {
    "address": {"kind": "pretrained", "architecture": "hf-hub:evil/model", "context": 1, "hidden": 8, "decoder": []},
    "path": {"kind": "pretrained", "architecture": "../../evil", "context": 1, "hidden": 8, "decoder": []},
    "file": {"kind": "pretrained", "architecture": "resnet18@/etc/passwd", "context": 1, "hidden": 8, "decoder": []},
    "wide": {"kind": "scratch", "norm": "channels", "width": 10**9, "depth": 4},
    "deep": {"kind": "scratch", "norm": "channels", "width": 8, "depth": 10**6},
    "negative": {"kind": "scratch", "norm": "channels", "width": -8, "depth": 3},
    "unknown": {"kind": "__import__('os').system('x')"},
    "missing": {},
    "list": [1],
}


@pytest.mark.parametrize("name", NETS)
def test_hostile_networks_are_refused_without_network_or_memory(tmp_path, monkeypatch, name):
    import socket

    def no_network(*args, **kwargs):
        raise AssertionError("a model file made this program call somebody")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    scale = {"low": [0, 0, 0], "high": [255, 255, 255]}
    path = model_file(tmp_path / "m.safetensors", good_recipe(extra={"net": NETS[name], "input": scale}))
    with pytest.raises(ModelError) as caught, Session() as session:
        session.load_model(path)
    assert len(str(caught.value)) < 1000


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_model_headers(tmp_path, data):
    path = model_file(tmp_path / "m.safetensors", good_recipe())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        read_metadata(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - most changes break it, some do not


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["geojson", "xml", "sparseseg", "json"])
@given(data=st.data())
def test_fuzzed_annotations_and_projects(tmp_path, kind, data):
    """A few bytes changed, cut out or doubled: read, or refused with one of our errors and the name of the file."""
    made = Annotations((200, 200), ["a", "b"])
    made.paint([(20, 20), (60, 60)], 5, 1)
    made.fill_polygon([(100, 100), (150, 180), (180, 110)], 2, dense=True)
    path = tmp_path / f"a.{kind}"
    if kind == "json":
        path = tmp_path / "p.sparseseg" / "project.json"
        shutil.rmtree(path.parent, ignore_errors=True)
        with Session(["a", "b"]) as session:
            session.save(path.parent)
    else:
        save_annotations(made, path, overwrite=True)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at, length = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 20))
        piece = content[at : at + length] * 2 if data.draw(st.booleans()) else data.draw(st.binary(max_size=4))
        content[at : at + length] = piece
        content = content or bytearray(b" ")
    path.write_bytes(content)
    try:
        if kind == "json":
            Project.open(path.parent)
        else:
            load_annotations(path, (200, 200)).counts()
    except SparseSegError as error:
        assert len(str(error)) < 2000  # noqa: PT017 - most changes break it, some do not


def test_names_with_markup_and_formats_are_only_text(tmp_path):
    """Through strokes, project, GeoJSON and back: the same text, never interpreted."""
    slide = write_slide(tmp_path / "%s{0}<b>.tif", two_textures(256))
    with Session([(TEXT, "#112233"), ("'; DROP TABLE strokes; --", "#445566")]) as session:
        session.open(slide)
        session.annotations.paint([(10, 10), (50, 90)], 5, 1)
        session.annotations.paint([(90, 10), (120, 90)], 5, 2)
        names = [c.name for c in session.classes]
        session.save(tmp_path / "p")
        session.annotations.to_geojson(tmp_path / "a.geojson")
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert [c.name for c in session.classes] == names
        assert len(session.annotations.strokes) == 2
    again = Annotations.from_geojson(tmp_path / "a.geojson", (256, 256))
    assert [c.name for c in again.classes] == names


def test_an_annotation_file_with_hostile_tables_is_refused(tmp_path):
    import sqlite3

    hostile = {
        "giant shape": "UPDATE meta SET value = '[99999999999, 99999999999]' WHERE key = 'shape'",
        "negative shape": "UPDATE meta SET value = '[-5, 10]' WHERE key = 'shape'",
        "shape of text": "UPDATE meta SET value = '\"ab\"' WHERE key = 'shape'",
        "deep": "UPDATE meta SET value = '" + "[" * 50_000 + "' WHERE key = 'shape'",
        "no json": "UPDATE meta SET value = 'x' WHERE key = 'version'",
        "no table": "DROP TABLE chunks",
        "view": "DROP TABLE chunks; CREATE VIEW chunks AS SELECT 0 AS layer, 0 AS level, 0 AS i, 0 AS j, "
        "zeroblob(1000000000) AS data, 0 AS crc",
        "far chunk": "UPDATE chunks SET i = i + 1000000, j = j - 5",
        "high level": "UPDATE chunks SET level = level + 99",
        "bad class": "UPDATE classes SET id = 300",
        "class colour": "UPDATE classes SET colour = 'javascript:x'",
        "stroke class": "UPDATE strokes SET class_id = 77",
        "stroke kind": "UPDATE strokes SET kind = 'eval'",
        "stroke rings": "UPDATE strokes SET rings = '[-1, 3]'",
    }
    for name, script in hostile.items():
        path = tmp_path / f"{name}.sqlite"
        made = Annotations((500, 500), ["a", "b"])
        made.paint([(10, 10), (50, 90)], 5, 1)
        made.save(path)
        with sqlite3.connect(path) as connection:
            connection.executescript(script)
        connection.close()
        try:
            found = Annotations.load(path)
            found.read((0, 0, 10, 10))
            found.snapshot().read((0, 0, 500, 500))
        except SparseSegError as error:
            assert len(str(error)) < 2000, name  # noqa: PT017 - refused, or harmless
        else:
            assert name == "stroke class", name


GEOJSON = {
    "nan": '{"type": "Polygon", "coordinates": [[[NaN, 0], [1, 1], [2, 0]]]}',
    "huge": '{"type": "Polygon", "coordinates": [[[1e308, 0], [-1e308, 1e308], [2, 0]]]}',
    "overflow": '{"type": "Polygon", "coordinates": [[[1e999, 0], [1, 1], [2, 0]]]}',
    "long integer": '{"type": "Point", "coordinates": [' + "9" * 5000 + ", 1]}",
    "surrogate": '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, '
    '"properties": {"classification": {"name": "\\ud800"}}}',
    "blank name": '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, '
    '"properties": {"classification": {"name": " "}}}',
    "long name": '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, '
    '"properties": {"classification": {"name": "' + "x" * 10**6 + '"}}}',
    "infinite": '{"type": "Polygon", "coordinates": [[[Infinity, 0], [1, 1], [2, 0]]]}',
    "nan radius": '{"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 1], [9, 9]]}, '
    '"properties": {"classification": "a", "metadata": {"radius": NaN}}}',
    "radius": '{"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 1], [9, 9]]}, '
    '"properties": {"classification": "a", "metadata": {"radius": 1e300}}}',
}


REFUSED = {
    "nan": "must be finite", "infinite": "must be finite", "huge": "must be finite", "overflow": "must be finite",
    "long integer": "not valid JSON", "surrogate": "cannot be written", "long name": "longer than 500",
}  # fmt: skip
EVEN_ODD = {
    "figure eight": [[(10, 10), (90, 90), (90, 10), (10, 90)]],
    "bow ties": [[(10, 10), (90, 90), (90, 10), (10, 90), (50, 5), (50, 150)]],
    "hole outside": [[(10, 10), (50, 10), (50, 50), (10, 50)], [(100, 101), (150, 101), (150, 150)]],
    "twice around": [2 * [(10, 10), (50, 10), (50, 50), (10, 50)]],
    "one line": [[(10, 10), (50, 50), (90, 90)]], "one point": [3 * [(7, 7)]],
    "outside": [[(1000, 1000), (2000, 1000), (2000, 2000)]],
}  # fmt: skip
"""What crosses itself or has no area, (x, y), is filled where a ray crosses it an odd number of times."""
EVEN_ODD = {
    name: [[(x + 0.3137, y) for x, y in ring] for ring in rings] for name, rings in EVEN_ODD.items()
}  # no centre of a pixel lies on a line then
HARMLESS = {"blank name": 0, "nan radius": 110, "radius": 110}
"""What has no name labels nothing; a radius beyond all bounds is the usual one of 4 px."""
GEOJSON |= {
    name: json.dumps(labelled_polygon([[*ring, ring[0]] for ring in rings])) for name, rings in EVEN_ODD.items()
}


def even_odd(rings):
    """Pixels of 200 x 200 whose centre is inside; by ray casting, without any of our code."""
    y, x = np.mgrid[:200, :200] + 0.5
    inside = np.zeros((200, 200), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@pytest.mark.parametrize("name", GEOJSON)
def test_hostile_geojson_is_refused_or_harmless(tmp_path, name):
    path = tmp_path / "a.geojson"
    path.write_text(GEOJSON[name])
    if name in REFUSED:
        with pytest.raises(SparseSegError, match=REFUSED[name]) as caught:
            Annotations.from_geojson(path, (200, 200))
        assert len(str(caught.value)) < 1000
        return
    found = Annotations.from_geojson(path, (200, 200))
    labels = found.read((0, 0, 200, 200))
    if name in EVEN_ODD:
        np.testing.assert_array_equal(labels == 1, even_odd(EVEN_ODD[name]))
    else:
        assert (labels == 1).sum() == HARMLESS[name]
    assert set(np.unique(labels)) <= {0, 1}
    found.save(tmp_path / "a.sparseseg")
    found.to_geojson(tmp_path / "b.geojson")
    np.testing.assert_array_equal(Annotations.load(tmp_path / "a.sparseseg").read((0, 0, 200, 200)), labels)
    again = Annotations.from_geojson(tmp_path / "b.geojson", (200, 200))
    np.testing.assert_array_equal(again.read((0, 0, 200, 200)), labels)


VERTICES = """
    import resource, sys
    from napari_sparseseg import Annotations
    from napari_sparseseg.errors import SparseSegError
    from napari_sparseseg.io.geojson import MAX_MEMORY
    from tests.helpers.limits import limit_memory
    limit_memory(MAX_MEMORY + (1 << 30))
    try:
        print(sum(Annotations.from_geojson(sys.argv[1], (9000, 9000)).counts().values()))
    except SparseSegError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
@pytest.mark.parametrize(
    "text", [pytest.param("points", marks=pytest.mark.slow), pytest.param("lists", marks=pytest.mark.slow), "few lists"]
)
def test_memory_of_geojson_is_bounded(tmp_path, text):
    """10^7 vertices of one outline; 10^8 empty lists, which take twenty times the room of their file."""
    path = tmp_path / "a.geojson"
    with path.open("w") as file:
        if text == "points":
            file.write('{"type": "Polygon", "coordinates": [[[0, 0]')
            for k in range(1000):
                file.write("".join(f",[{(k * 9 + j % 9)},{(k * 7919 + j * 31) % 9000}]" for j in range(10_000)))
            file.write(",[0, 0]]]}")
        else:
            count = 100_000_000 if text == "lists" else 40_000_000
            file.write("[" + "[]," * count + "[]]")
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(VERTICES), str(path)],
        capture_output=True, text=True, timeout=280, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    expected = "10000002 corners is too complex" if text == "points" else "more than 4 GB of memory"
    assert expected in ended.stdout


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A folder of bad inputs beside one good slide and good strokes; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "good.tif", two_textures(256))
    made = Annotations((256, 256), ["a", "b"])
    made.paint([(20, 20), (60, 60)], 5, 1)
    made.save(tmp_path / "one.sparseseg")
    made.paint([(120, 20), (160, 60)], 5, 2)
    made.save(tmp_path / "good.sparseseg")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise.svs").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:3000])
    (tmp_path / "deep.geojson").write_text("[" * 10**6)
    (tmp_path / "entities.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>')
    model_file(tmp_path / "m.safetensors", good_recipe())
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    if os.name != "nt":  # there, the two names are not there: refused as well
        (tmp_path / "loop").symlink_to("loop")
        os.mkfifo(tmp_path / "fifo.tif")
    return tmp_path


TRAIN = ("--model", "out.safetensors", "--steps", "1")
COMMANDS = [
    ("info", "absent.svs"),
    ("info", "empty"),
    ("info", "noise.svs"),
    ("info", "text.tif"),
    ("info", "folder"),
    ("info", "cut.tif"),
    ("info", "loop"),
    ("info", "fifo.tif"),
    ("info", "nul\0.svs"),
    ("info", "x" * 300),
    ("info", "https://127.0.0.1:9/a.zarr"),
    ("info", "nonsense://a"),
    ("train", "good.tif", "--annotations", "one.sparseseg", *TRAIN),
    ("train", "good.tif", "--annotations", "deep.geojson", *TRAIN),
    ("train", "good.tif", "--annotations", "entities.xml", *TRAIN),
    ("train", "good.tif", "--annotations", "fifo.tif", *TRAIN),
    ("train", "good.tif", "--annotations", "a", "b", *TRAIN),
    ("train", "good.tif", "--seed", "-1", *TRAIN),
    ("train", "good.tif", "--mpp", "1e9", *TRAIN),
    ("train", "good.tif", "--device", "abacus", *TRAIN),
    ("train", "good.tif", "--device", "cuda:99", *TRAIN),
    ("train", "good.tif", "--encoder", "no_such_encoder", *TRAIN),
    ("train", "good.tif", "--init", "pickle.safetensors", *TRAIN),
    ("train", "good.tif", "--model", "folder/none/out.safetensors", "--steps", "1"),
    ("predict", "good.tif", "--model", "m.safetensors", "--output", "o.ome.tif"),
    ("predict", "good.tif", "--model", "pickle.safetensors", "--output", "o.ome.tif"),
    ("predict", "good.tif", "--model", "absent.safetensors", "--output", "o.ome.zarr"),
    ("predict", "good.tif", "--model", "folder", "--output", "o.ome.zarr"),
    ("predict", "good.tif", "--model", "fifo.tif", "--output", "o.ome.zarr"),
    ("predict", "good.tif", "good.tif", "--model", "m.safetensors", "--output", "o.ome.tif"),
    ("convert", "deep.geojson", "out.geojson", "--slide", "good.tif"),
    ("convert", "good.sparseseg", "out.docx"),
    ("convert", "good.sparseseg", "absent/out.geojson"),
    ("convert", "noise.svs", "out.geojson"),
    ("convert", "folder", "out.geojson", "--slide", "good.tif"),
]


@pytest.mark.parametrize("args", COMMANDS, ids=lambda a: " ".join(a)[:60].replace("\0", "NUL"))
def test_a_bad_input_is_one_line_and_exit_2(bad, capsys, args):
    before = sorted(p.name for p in bad.iterdir())
    code = []
    worker = threading.Thread(target=lambda: code.append(main(list(args))), daemon=True)
    worker.start()
    worker.join(60)
    assert code == [2], "no answer in a minute, or another exit"
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("napari-sparseseg: ")
    assert len(lines[-1]) < 1500
    assert "Traceback" not in "\n".join(lines)
    assert sorted(p.name for p in bad.iterdir() if not p.name.endswith(".partial")) == before


def test_a_real_process_answers_too(bad):
    for args in (("info", "noise.svs"), ("predict", "good.tif", "--model", "m.safetensors", "--output", "o.ome.tif")):
        ended = subprocess.run(
            [sys.executable, "-m", "napari_sparseseg", *args],
            capture_output=True, text=True, timeout=100, cwd=bad, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert ended.returncode == 2
        assert len(ended.stderr.strip().splitlines()) == 1


def test_no_settings_can_be_made_that_training_cannot_bear():
    with pytest.raises(SparseSegError, match="seed -1"):
        TrainConfig(seed=-1)
