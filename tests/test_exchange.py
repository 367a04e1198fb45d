"""QuPath GeoJSON, ASAP XML, label images, and finding, loading and converting annotation files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
import tifffile
import zarr

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.errors import AnnotationError, AnnotationWarning
from napari_sparseseg.io import find_annotations, load_annotations, read_asap, read_labels, save_annotations
from napari_sparseseg.io.asap import closed_spline
from napari_sparseseg.io.files import WRITERS

H, W = 1500, 1801
WHOLE = (0, 0, H, W)


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry, name="tumour", **properties):
    label = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": label, **properties}}


def read(tmp_path, data, classes=None):
    path = tmp_path / "in.geojson"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return Annotations.from_geojson(path, (H, W), classes)


@pytest.fixture
def drawn():
    a = Annotations((H, W), [("tumour", "#e6194b"), ("stroma", "#3cb44b"), "never used"])
    rng = np.random.default_rng(3)
    for k in range(14):
        a.paint(rng.uniform(0, 1500, (3, 2)), float(2 ** rng.uniform(0, 7)), 1 + k % 2)
    a.erase(rng.uniform(0, 1500, (3, 2)), 15)
    a.begin_stroke(2, "fill")
    a.paint_mask(0, 1440, 1750, rng.random((60, 51)) < 0.4)
    a.commit_stroke()
    a.fill_polygon([(20.5, 100), (20, 900), (700, 800)], 2, dense=True, holes=[[(100, 500), (200, 600), (300, 500)]])
    return a


def test_round_trip_is_exact_to_the_pixel(drawn, tmp_path):
    drawn.to_geojson(tmp_path / "a.geojson")
    again = Annotations.from_geojson(tmp_path / "a.geojson", (H, W))
    for only in (True, False):
        a, b = (x.read(WHOLE, scribbles_only=only) for x in (drawn, again))
        np.testing.assert_array_equal(a, b)
    assert again.classes == drawn.classes
    assert again.counts() == drawn.counts()
    assert len(again.dense_regions) == 1
    assert again.version == 1


def test_what_is_written_is_valid_geojson_as_qupath_writes_it(drawn, tmp_path):
    drawn.to_geojson(tmp_path / "a.geojson")
    data = json.loads((tmp_path / "a.geojson").read_text())
    assert data["type"] == "FeatureCollection"
    ids = [f["id"] for f in data["features"]]
    assert len(set(ids)) == len(ids)
    area = {1: 0.0, 2: 0.0}
    for f in data["features"]:
        assert f["properties"]["objectType"] == "annotation"
        shape = shapely.geometry.shape(f["geometry"])
        assert shape.is_valid
        if "name" not in f["properties"]:
            area[{"tumour": 1, "stroma": 2}[f["properties"]["classification"]["name"]]] += shape.area
    scribbles = drawn.read(WHOLE, scribbles_only=True)
    assert area == {k: (scribbles == k).sum() for k in (1, 2)}
    assert data["features"][-1]["properties"]["classification"]["color"] in ([230, 25, 75], [60, 180, 75])


def test_every_geometry_and_classification(tmp_path):
    ring, hole = square(10, 20, 100), square(40, 50, 20)
    a = read(
        tmp_path,
        {
            "type": "FeatureCollection",
            "features": [
                feature({"type": "Polygon", "coordinates": [ring, hole]}, isLocked=True),
                feature(
                    {
                        "type": "MultiPolygon",
                        "coordinates": [[square(300, 300, 10)], [square(400, 300, 20), square(405, 305, 5)]],
                    },
                    "Immune cells: Positive",
                ),
                feature({"type": "LineString", "coordinates": [[600, 600], [700, 600]]}, metadata={"radius": "10"}),
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [square(800, 100, 30)]},
                    "properties": {"classification": {"names": ["A", "B"], "colorRGB": -13710336}},
                },
                feature(
                    {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [900, 900]}]},
                    "TUMOUR",
                ),
                feature({"type": "Polygon", "coordinates": [square(15, 25, 10)]}, "Ignore*"),
                {"type": "Feature", "geometry": None, "properties": {}},
            ],
        },
    )
    assert [c.name for c in a.classes] == ["tumour", "Immune cells: Positive", "A: B"]
    assert a.classes[0].colour == "#c80000"
    assert a.classes[2].colour == f"#{-13710336 & 0xFFFFFF:06x}"
    labels = a.read(WHOLE)
    assert (labels[20:120, 10:110] == 1).sum() == 100 * 100 - 20 * 20 - 10 * 10
    assert not labels[25:35, 15:25].any()
    assert (labels == 2).sum() == 100 + 400 - 25
    assert (labels == 3).sum() == 900
    assert labels[609, 650] == 1
    assert labels[611, 650] == 0
    assert labels[900, 900] == 1


@pytest.mark.parametrize("wrap", ["feature", "geometry", "list", "collection"])
def test_bare_objects(tmp_path, wrap):
    geometry = {"type": "Polygon", "coordinates": [square(0, 0, 10)]}
    data = {
        "feature": feature(geometry),
        "geometry": geometry,
        "list": [feature(geometry)],
        "collection": {"type": "FeatureCollection", "features": [feature(geometry)]},
    }[wrap]
    if wrap == "geometry":  # it has no class, so it trains none
        with pytest.warns(AnnotationWarning, match="1 objects without a class"):
            a = read(tmp_path, data)
        assert not sum(a.counts().values())
        assert [other["geometry"] for other in a.others] == [geometry]
    else:
        a = read(tmp_path, data)
        assert a.counts() == {1: 100}
        assert a.classes[0].name == "tumour"


def test_names_match_whatever_their_case_and_new_ones_are_appended(tmp_path):
    polygons = [
        feature({"type": "Polygon", "coordinates": [square(20 * k, 0, 10)]}, n) for k, n in enumerate(["STROMA", "new"])
    ]
    a = read(tmp_path, polygons, classes=["tumour", "Stroma"])
    assert [c.name for c in a.classes] == ["tumour", "Stroma", "new"]
    assert a.counts() == {1: 0, 2: 100, 3: 100}


def test_small_shapes_lie_on_large_ones(tmp_path):
    inner, outer = ({"type": "Polygon", "coordinates": [square(*s)]} for s in [(40, 40, 10), (0, 0, 200)])
    a = read(tmp_path, [feature(inner, "inner"), feature(outer, "outer")])
    assert a.counts() == {1: 100, 2: 200 * 200 - 100}


P = '{"type": "Polygon", "coordinates": %s}'
BAD = {
    "not json": "{",
    "nan": P % "[[[NaN, 0], [1, 0], [1, 1]]]",
    "infinity": P % "[[[Infinity, 0], [1, 0], [1, 1]]]",
    "overflow": P % "[[[1e999, 0], [1, 0], [1, 1]]]",
    "huge": P % "[[[1e308, 0], [1, 0], [1, 1]]]",
    "text": P % '[[["1", "2"], ["3", "4"], ["5", "6"]]]',
    "ragged": P % "[[[1, 2], [3], [5, 6]]]",
    "null": P % "[[[1, null], [3, 4], [5, 6]]]",
    "number": P % "7",
    "flat": P % "[1, 2, 3]",
    "unknown type": '{"type": "Circle", "coordinates": [[1, 2]]}',
    "no features": '{"type": "FeatureCollection"}',
    "features no list": '{"type": "FeatureCollection", "features": 3}',
    "scalar": "3",
    "properties": '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": 3}',
    "classification": '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, '
    '"properties": {"classification": 3}}',
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep": "[" * 500 + "]" * 500,
    "deep collection": '{"type": "GeometryCollection", "geometries": [' * 200 + "]}" * 200,
    "long number": P % ("[[[" + "9" * 6000 + ", 0], [1, 0], [1, 1]]]"),
    "own table": '{"type": "FeatureCollection", "features": [], "napari-sparseseg": {"classes": [{"id": 0}]}}',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_geojson_is_refused_with_the_name_of_the_file(tmp_path, text):
    with pytest.raises(AnnotationError, match=r"^in\.geojson: "):
        read(tmp_path, text)


def test_too_many_points_or_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_sparseseg.io.shapes.MAX_POINTS", 100)
    with pytest.raises(AnnotationError, match="more than 100 points"):
        read(tmp_path, feature({"type": "Polygon", "coordinates": [[[k, k * k] for k in range(101)]]}))
    monkeypatch.undo()
    with pytest.raises(AnnotationError, match="255 classes"):
        read(tmp_path, [feature({"type": "Point", "coordinates": [1, 1]}, f"c{k}") for k in range(256)])


def test_progress_is_told(tmp_path):
    path = tmp_path / "in.geojson"
    path.write_text(json.dumps([feature({"type": "Polygon", "coordinates": [square(k, 0, 5)]}) for k in range(1200)]))
    told = []
    a = Annotations.from_geojson(path, (H, W), progress=lambda done, total: told.append((done, total)))
    assert (told[0], told[-1]) == ((0, 1200), (1200, 1200))
    assert told == sorted(told)
    assert a.counts() == {1: 5 * 1204}
    assert len(a.strokes) == 1200


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="0" Type="Polygon" PartOfGroup="tumor" Color="#F4FA58"><Coordinates>
  <Coordinate Order="1" X="110" Y="20"/><Coordinate Order="0" X="10" Y="20"/>
  <Coordinate Order="2" X="110" Y="70"/><Coordinate Order="3" X="10,0" Y="70"/></Coordinates></Annotation>
<Annotation Name="1" Type="Rectangle" PartOfGroup="stroma" Color="#F4FA58"><Coordinates>
  <Coordinate Order="0" X="200" Y="200"/><Coordinate Order="1" X="240" Y="200"/>
  <Coordinate Order="2" X="240" Y="230"/><Coordinate Order="3" X="200" Y="230"/></Coordinates></Annotation>
<Annotation Name="2" Type="Dot" PartOfGroup="None" Color="#112233"><Coordinates>
  <Coordinate Order="0" X="300" Y="400"/></Coordinates></Annotation>
<Annotation Name="3" Type="Spline" PartOfGroup="tumor" Color="#F4FA58"><Coordinates>
  <Coordinate Order="0" X="600" Y="500"/><Coordinate Order="1" X="700" Y="600"/>
  <Coordinate Order="2" X="600" Y="700"/><Coordinate Order="3" X="500" Y="600"/></Coordinates></Annotation>
</Annotations><AnnotationGroups>
<Group Name="tumor" PartOfGroup="None" Color="#64FE2E"><Attributes/></Group>
<Group Name="stroma" PartOfGroup="None" Color="#ff0000"><Attributes/></Group>
</AnnotationGroups></ASAP_Annotations>"""


def test_asap(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(ASAP)
    with pytest.warns(AnnotationWarning, match="1 objects without a class"):
        a = read_asap(path, (H, W))
    assert [(c.name, c.colour) for c in a.classes] == [("tumor", "#64FE2E"), ("stroma", "#ff0000")]
    labels = a.read(WHOLE)
    assert (labels[:480] == 1).sum() == 100 * 50
    assert (labels == 2).sum() == 40 * 30
    assert labels[400, 300] == 0, "an annotation without a group labels nothing"
    (dot,) = a.others
    assert dot["geometry"] == {"type": "MultiLineString", "coordinates": [[[300, 400], [300, 400]]]}
    # The spline through the corners of a diamond bulges beyond it and stays within its circle's square.
    assert 20_000 < (labels[480:] == 1).sum() < np.pi * 100**2 * 1.05
    assert labels[600, 600] == labels[500, 600] == 1


def test_a_spline_goes_through_its_knots_with_the_slopes_of_its_neighbours():
    knots = np.array([(0.0, 0.0), (0.0, 4.0), (3.0, 5.0), (4.0, -1.0)])
    curve = closed_spline(knots, steps=1000).reshape(4, 1000, 2)
    np.testing.assert_allclose(curve[:, 0], knots)
    slopes = (curve[:, 1] - curve[:, 0]) * 1000
    np.testing.assert_allclose(slopes, (np.roll(knots, -1, 0) - np.roll(knots, 1, 0)) / 2, atol=0.02)


ONE = """<ASAP_Annotations><Annotations><Annotation Name="0" Type="Polygon" PartOfGroup="tumor"><Coordinates>
<Coordinate Order="0" X="10" Y="20"/><Coordinate Order="1" X="60" Y="20"/><Coordinate Order="2" X="10" Y="70"/>
</Coordinates></Annotation></Annotations></ASAP_Annotations>"""
BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>
<ASAP_Annotations>&b;</ASAP_Annotations>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><ASAP_Annotations/>', "document type"),
        ("<ASAP_Annotations>", "valid XML"),
        ("<svg/>", "only the XML of ASAP"),
        ("<a>" * 100_000, "unknown program"),
        ("<ASAP_Annotations>" * 100_000, "valid XML"),
        (ONE.replace('X="10"', 'X="nan"'), "not a number"),
        (ONE.replace('X="10"', 'X="1e308"'), "finite"),
        (ONE.replace("Polygon", "Blob"), "not known"),
        ('<ASAP_Annotations><Coordinate X="1" Y="2"/></ASAP_Annotations>', "outside"),
    ],
)
def test_bad_xml_is_refused(tmp_path, text, message):
    for encoding in ("utf-8", "utf-16"):
        path = tmp_path / "a.xml"
        path.write_text(text, encoding=encoding)
        with pytest.raises(AnnotationError, match=rf"(?s)^a\.xml: .*{message}"):
            read_asap(path, (H, W))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_label_tiff_of_any_level(tmp_path, scale):
    rng = np.random.default_rng(0)
    small = (rng.random((-(-H // scale), -(-W // scale))) < 0.01).astype(np.uint8) * 3
    small[100:200, 50:150] = 1
    tifffile.imwrite(tmp_path / "l.tif", small, tile=(256, 256), compression="zlib")
    a = read_labels(tmp_path / "l.tif", (H, W))
    np.testing.assert_array_equal(a.read(WHOLE), small.repeat(scale, 0).repeat(scale, 1)[:H, :W])
    assert [c.name for c in a.classes] == ["class 1", "class 3"]
    assert {s.kind for s in a.strokes} == {"fill"}


def test_label_image_at_another_scale_takes_the_pixel_under_the_centre(tmp_path):
    small = np.random.default_rng(1).integers(0, 3, (500, 600), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "l.tif", small)
    a = read_labels(tmp_path / "l.tif", (H, W))
    rows = np.floor((np.arange(0, H, 2) + 1) * 500 / H).astype(int)
    columns = np.floor((np.arange(0, W, 2) + 1) * 600 / W).astype(int).clip(max=599)
    np.testing.assert_array_equal(a.read(WHOLE)[::2, ::2], small[np.ix_(rows, columns)])


def test_ome_zarr_labels_with_names_and_colours(tmp_path):
    labels = np.zeros((H, W), np.uint8)
    labels[10:20, 30:50] = 7
    root = zarr.open_group(str(tmp_path / "l.ome.zarr"), mode="w")
    group = root.create_group("labels/classes")
    root["labels"].attrs["ome"] = {"version": "0.5", "labels": ["classes"]}
    group.create_array("0", data=labels)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}],
        "image-label": {
            "colors": [{"label-value": 7, "rgba": [1, 2, 3, 255]}],
            "properties": [{"label-value": 7, "name": "gland"}],
        },
    }
    a = load_annotations(tmp_path / "l.ome.zarr", (H, W))
    assert [(c.id, c.name, c.colour) for c in a.classes] == [(7, "gland", "#010203")]
    np.testing.assert_array_equal(a.read(WHOLE), labels)


def test_label_images_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "l.tif"
    for image, message in [
        (np.zeros((100, 1000), np.uint8), "do not fit"),
        (np.zeros((H, W), np.float32), "not a label image"),
        (np.zeros((H, W, 3), np.uint8), "not a label image"),
        (np.full((H, W), 300, np.uint16), "class ids are 1 to 255"),
    ]:
        tifffile.imwrite(path, image)
        with pytest.raises(AnnotationError, match=message):
            read_labels(path, (H, W))
    path.write_bytes(b"II*\0" + b"\0" * 10)
    with pytest.raises(AnnotationError, match="cannot read"):
        load_annotations(path, (H, W))
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(AnnotationError, match="no OME-Zarr labels"):
        load_annotations(tmp_path / "x.zarr", (H, W))


def test_the_file_beside_a_slide(tmp_path):
    for slide in ("a.svs", "a.ome.tif"):
        (tmp_path / slide).touch()
        with pytest.raises(AnnotationError, match=r"expected one of a\.geojson, a\.xml, a\.sparseseg"):
            find_annotations(tmp_path / slide)
    (tmp_path / "a.sparseseg").touch()
    assert find_annotations(tmp_path / "a.svs") == tmp_path / "a.sparseseg"
    (tmp_path / "a.geojson").touch()
    assert find_annotations(tmp_path / "a.ome.tif") == tmp_path / "a.geojson"
    (tmp_path / "a-image-2.geojson").touch()
    assert find_annotations(tmp_path / "a.ome.tif", image=2) == tmp_path / "a-image-2.geojson"
    assert find_annotations(tmp_path / "a.ome.tif", image=1) == tmp_path / "a.geojson"


def test_loading_dispatches_on_what_a_file_is(drawn, tmp_path):
    drawn.save(tmp_path / "own.dat")
    drawn.to_geojson(tmp_path / "geo.txt")
    (tmp_path / "asap").write_text(ASAP)
    folder = tmp_path / "project.sparseseg" / "annotations"
    folder.mkdir(parents=True)
    drawn.save(folder / "one.sqlite")
    Annotations((10, 10)).save(folder / "two.sqlite")
    for name in ("own.dat", "geo.txt", "project.sparseseg"):
        np.testing.assert_array_equal(load_annotations(tmp_path / name, (H, W)).read(WHOLE), drawn.read(WHOLE))
    assert load_annotations(tmp_path / "asap", (H, W)).counts()[2] == 1200
    with pytest.raises(AnnotationError, match="this one has"):
        load_annotations(tmp_path / "own.dat", (H, W + 1))
    drawn.save(folder / "three.sqlite")
    with pytest.raises(AnnotationError, match="2 annotation files"):
        load_annotations(tmp_path / "project.sparseseg", (H, W))
    (tmp_path / "what").write_text("?")
    with pytest.raises(AnnotationError, match="known format"):
        load_annotations(tmp_path / "what", (H, W))
    with pytest.raises(AnnotationError, match="there is no"):
        load_annotations(tmp_path / "absent", (H, W))


def test_loading_into_another_class_table(drawn, tmp_path):
    drawn.save(tmp_path / "a.sparseseg")
    a = load_annotations(tmp_path / "a.sparseseg", (H, W), classes=["STROMA", "other"])
    assert [c.name for c in a.classes] == ["STROMA", "other", "tumour", "never used"]
    table = np.array([0, 3, 1, 4], np.uint8)
    np.testing.assert_array_equal(a.read(WHOLE), table[drawn.read(WHOLE)])
    assert [s.class_id for s in a.strokes] == [int(table[s.class_id]) for s in drawn.strokes]
    full = a.read(WHOLE, scribbles_only=True)
    padded = np.pad(full, ((0, -H % 2), (0, -W % 2)))
    pooled = padded.reshape(padded.shape[0] // 2, 2, -1, 2).max((1, 3))
    np.testing.assert_array_equal(a.read(WHOLE, 1, scribbles_only=True), pooled)


def convert(source, target, shape=None):
    save_annotations(load_annotations(source, shape), target)


def test_the_longest_suffix_chooses_the_format(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, ".coco.json", lambda _annotations, target, *_: target.write_text("coco"))
    save_annotations(drawn, tmp_path / "a.coco.JSON")
    save_annotations(drawn, tmp_path / "b.json")
    assert (tmp_path / "a.coco.JSON").read_text() == "coco"
    assert json.loads((tmp_path / "b.json").read_text())["type"] == "FeatureCollection"


def test_converting_there_and_back(drawn, tmp_path):
    drawn.save(tmp_path / "a.sparseseg")
    convert(tmp_path / "a.sparseseg", tmp_path / "b.geojson")
    convert(tmp_path / "b.geojson", tmp_path / "c.sparseseg")
    np.testing.assert_array_equal(Annotations.load(tmp_path / "c.sparseseg").read(WHOLE), drawn.read(WHOLE))
    (tmp_path / "a.xml").write_text(ASAP)
    with pytest.raises(AnnotationError, match="--slide"):
        convert(tmp_path / "a.xml", tmp_path / "d.geojson")
    convert(tmp_path / "a.xml", tmp_path / "d.geojson", (H, W))
    assert Annotations.from_geojson(tmp_path / "d.geojson", (H, W)).counts()[2] == 1200
    with pytest.raises(AnnotationError, match=r"written as \.geojson.*not as e\.png"):
        convert(tmp_path / "a.sparseseg", tmp_path / "e.png")
