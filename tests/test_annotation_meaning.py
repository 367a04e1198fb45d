"""What objects of an annotation file mean: which label pixels, which are kept, which are left out and counted."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import unicodedata
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import shapely

from napari_sparseseg import Annotations, load_annotations, save_annotations
from napari_sparseseg.cli import main
from napari_sparseseg.errors import AnnotationError, AnnotationWarning
from napari_sparseseg.geometry import Box
from napari_sparseseg.io.geojson import parse_geojson

SHAPE = (300, 400)
WHOLE = (0, 0, *SHAPE)


def square(x, y, side):
    return {
        "type": "Polygon",
        "coordinates": [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]],
    }


def thing(geometry, label=None, **more):
    properties = {"objectType": "annotation", **more}
    if label is not None:
        properties["classification"] = {"name": label, "color": [1, 2, 3]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def areas(annotations):
    return {c.name: n for c in annotations.classes if (n := annotations.counts()[c.id])}


TUMOUR = thing(square(10, 10, 100), "Tumour")


@pytest.mark.parametrize(
    ("other", "counted"),
    [
        (thing(square(20, 20, 5), "Cell", objectType="cell"), "1 cells"),
        (thing(square(20, 20, 5), "Cell", objectType="detection"), "1 detections"),
        (thing(square(20, 20, 5), "Cell", objectType="tile"), "1 tiles"),
        ({**thing(square(20, 20, 5), "Cell"), "id": "PathCellObject"}, "1 cells"),
        (thing({**square(20, 20, 5), "plane": {"c": -1, "z": 2, "t": 0}}, "Other"), "1 on other planes"),
        (thing({**square(20, 20, 5), "plane": {"c": -1, "z": 0, "t": 1}}, "Other"), "1 on other planes"),
        (thing({}, "Other"), "1 without an outline"),
        (thing(None, "Other"), "1 without an outline"),
        (thing({"type": "Polygon", "coordinates": [[]]}, "Other"), "1 without an outline"),
        (thing({"type": "MultiPolygon", "coordinates": [[[]], []]}, "Other"), "1 without an outline"),
        (thing({"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}, "Other"), "1 without an outline"),
        (thing({"type": "Blob", "coordinates": [[1, 2]]}, "Other"), "1 that cannot be used"),
        (thing({"type": ["Polygon"], "coordinates": [[1, 2]]}, "Other"), "1 that cannot be used"),
        (thing({"type": "Polygon", "coordinates": [[[1, 2], [3, "4"], [5, 6]]]}, "Other"), "1 that cannot be used"),
        (thing(square(20, 20, 5), 7), "1 that cannot be used"),
    ],
)
def test_what_cannot_label_is_left_out_and_counted_and_the_rest_is_read(tmp_path, other, counted):
    with pytest.warns(AnnotationWarning, match=counted):
        a = load_annotations(write(tmp_path / "a.geojson", other, TUMOUR), SHAPE)
    assert areas(a) == {"Tumour": 100 * 100}
    assert a.others == ()


@pytest.mark.parametrize(
    "other",
    [
        thing(square(0, 0, 250)),
        thing(square(0, 0, 250), objectType="tmaCore", name="A-1", isMissing=False),
        thing({"type": "Point", "coordinates": [50, 50]}, name="calibration"),
        thing(square(30, 30, 40), "Region*"),
        thing(square(0, 0, 200), "region*"),
    ],
)
def test_objects_without_a_class_of_their_own_label_nothing_and_are_kept(tmp_path, other):
    source = write(tmp_path / "a.geojson", other, TUMOUR)
    with pytest.warns(AnnotationWarning, match="1 objects without a class"):
        a = load_annotations(source, SHAPE)
    assert areas(a) == {"Tumour": 100 * 100}
    assert a.others == (other,)
    save_annotations(a, tmp_path / "a.sparseseg")
    assert load_annotations(tmp_path / "a.sparseseg", SHAPE).others == (other,)
    assert load_annotations(tmp_path / "a.sparseseg", SHAPE, ["stroma"]).others == (other,)
    save_annotations(a, tmp_path / "b.geojson")
    with pytest.warns(AnnotationWarning):
        again = load_annotations(tmp_path / "b.geojson", SHAPE)
    assert areas(again) == areas(a)
    (kept,) = again.others
    assert kept["geometry"] == other["geometry"]
    assert kept["properties"].get("classification") == other["properties"].get("classification")


def test_kept_objects_are_in_the_bound_file_at_once(tmp_path):
    a = Annotations(SHAPE, ["a"])
    a.attach(tmp_path / "a.sqlite")
    a.paint([(20, 20)], 5, 1)
    a.set_others([thing(square(0, 0, 9))])
    a.paint([(60, 60)], 5, 1)
    found = Annotations.load(tmp_path / "a.sqlite")
    assert found.others == (thing(square(0, 0, 9)),)
    assert found.counts() == a.counts()
    a.close()


def test_ignored_areas_clear_labels_once_and_survive_the_round_trip(tmp_path):
    source = write(tmp_path / "a.geojson", TUMOUR, thing(square(40, 40, 30), "Ignore*"))
    with pytest.warns(AnnotationWarning):
        a = load_annotations(source, SHAPE)
    assert areas(a) == {"Tumour": 100 * 100 - 30 * 30}
    a.fill_polygon([(50, 50), (50, 60), (60, 60), (60, 50)], 1)  # a person labels inside the ignored area
    a.to_geojson(tmp_path / "b.geojson")
    with pytest.warns(AnnotationWarning):
        again = load_annotations(tmp_path / "b.geojson", SHAPE)
    np.testing.assert_array_equal(again.read(WHOLE), a.read(WHOLE))
    written = json.loads((tmp_path / "b.geojson").read_text())["features"]
    names = [f["properties"]["classification"]["name"] for f in written]
    assert names.count("Ignore*") == 1


@pytest.mark.parametrize("suffix", [".geojson", ".xml", ".sparseseg"])
def test_a_class_with_a_star_that_was_painted_here_is_a_class(tmp_path, suffix):
    a = Annotations(SHAPE, ["Tumour", "Ignore*"])
    a.paint([(40, 40)], 10, 2)
    a.fill_polygon([(100, 100), (100, 200), (200, 200)], 2, dense=True)
    save_annotations(a, tmp_path / f"a{suffix}")
    again = load_annotations(tmp_path / f"a{suffix}", SHAPE)
    np.testing.assert_array_equal(again.read(WHOLE), a.read(WHOLE))
    assert again.classes[1].name == "Ignore*"


def test_a_class_with_a_star_in_the_given_table_is_a_class(tmp_path):
    source = write(tmp_path / "a.geojson", TUMOUR, thing(square(40, 40, 30), "Ignore*"))
    a = load_annotations(source, SHAPE, ["Tumour", "Ignore*"])
    assert areas(a) == {"Tumour": 100 * 100 - 900, "Ignore*": 900}
    assert a.others == ()


def test_children_are_drawn_however_they_are_nested(tmp_path):
    grandchild = thing(square(200, 50, 10), "C")
    child = {**thing(square(20, 20, 50), "B"), "childObjects": [grandchild]}
    parent = thing(square(0, 0, 100), "A", childObjects=[child])
    a = load_annotations(write(tmp_path / "a.geojson", parent), SHAPE)
    assert areas(a) == {"A": 100 * 100 - 50 * 50, "B": 50 * 50, "C": 100}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_measurements_may_be_words_that_json_does_not_have(tmp_path, word):
    features = [
        thing(square(10, 10, 100), "Tumour", measurements={"a": 0.125}),
        thing(square(0, 0, 9), measurements=[0.125]),
    ]
    path = write(tmp_path / "a.geojson", *features)
    path.write_text(path.read_text().replace("0.125", word))
    with pytest.warns(AnnotationWarning):
        a = load_annotations(path, SHAPE)
    assert areas(a) == {"Tumour": 100 * 100}
    a.to_geojson(tmp_path / "b.geojson")
    assert word not in (tmp_path / "b.geojson").read_text()


def test_one_class_for_each_name_whatever_its_unicode_form_case_and_spacing(tmp_path):
    forms = ["Drüse groß", unicodedata.normalize("NFD", "Drüse groß"), " DRÜSE\ngroß ", "Drüse\tGROSS"]
    source = write(tmp_path / "a.geojson", *(thing(square(20 * k, 0, 10), n) for k, n in enumerate(forms)))
    a = load_annotations(source, SHAPE)
    assert areas(a) == {"Drüse groß": 400}
    assert "\n" not in a.classes[0].name
    given = load_annotations(source, SHAPE, [forms[1]])
    assert len(given.classes) == 1


@pytest.mark.parametrize("more", [[], [0], [0, 1]])
@pytest.mark.parametrize("mixed", [False, True])
def test_positions_have_two_to_four_numbers(tmp_path, more, mixed):
    geometry = square(10, 10, 100)
    ring = geometry["coordinates"][0]
    geometry["coordinates"] = [[[*p, *(more if k % 2 or not mixed else [])] for k, p in enumerate(ring)]]
    assert areas(load_annotations(write(tmp_path / "a.geojson", thing(geometry, "A")), SHAPE)) == {"A": 100 * 100}


def test_compressed_files_and_what_is_wrong_with_them(tmp_path):
    text = write(tmp_path / "plain.geojson", TUMOUR).read_bytes()
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/a.geojson", text)
        archive.writestr("__MACOSX/folder/._a.geojson", b"junk")
    for name in ("a.geojson.gz", "a.zip"):
        assert areas(load_annotations(tmp_path / name, SHAPE)) == {"Tumour": 100 * 100}
        assert Annotations.from_geojson(tmp_path / name, SHAPE).counts() == {1: 100 * 100}
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.geojson", text)
        archive.writestr("b.xml", text)
    (tmp_path / "torn.geojson.gz").write_bytes(gzip.compress(text)[:-20])
    (tmp_path / "torn.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:60])
    for name, message in (
        ("two.zip", "2 annotation files"),
        ("torn.geojson.gz", "decompressed"),
        ("torn.zip", "decomp"),
    ):
        with pytest.raises(AnnotationError, match=rf"^{name}: .*{message}"):
            load_annotations(tmp_path / name, SHAPE)


def test_a_small_compressed_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_sparseseg.io.text_files.MAX_BYTES", 1 << 20)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(b" " * (2 << 20)))
    with pytest.raises(AnnotationError, match="larger than"):
        load_annotations(tmp_path / "a.geojson.gz", SHAPE)


OTHER_PROGRAMS = {
    "COCO": {"images": [], "annotations": [], "categories": []},
    "labelme": {"version": "5.0", "flags": {}, "shapes": [], "imagePath": "a.png", "imageData": None},
    "V7 Darwin": {"version": "2.0", "item": {"name": "a"}, "annotations": []},
    "VGG": {"_via_settings": {}, "_via_img_metadata": {}},
    "Digital Slide Archive": [{"_id": "1", "annotation": {"elements": []}}],
    "Label Studio": [{"id": 1, "annotations": [], "data": {}}],
    "TopoJSON": {"type": 1, "objects": {}, "arcs": []},
}


@pytest.mark.parametrize("program", OTHER_PROGRAMS)
def test_json_of_other_programs_is_named(tmp_path, program):
    (tmp_path / "a.json").write_text(json.dumps(OTHER_PROGRAMS[program]))
    with pytest.raises(AnnotationError, match=rf"^a\.json: .*{program}"):
        load_annotations(tmp_path / "a.json", SHAPE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xac\xed\x00\x05qupath", "export the objects as GeoJSON"),
        (b"<annotation><object/></annotation>", "Pascal VOC"),
        (b"<OME/>", "OME-XML"),
        (b"x,y\n1,2\n", "no known format"),
    ],
)
def test_other_files_are_named_in_one_line(tmp_path, data, message):
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises(AnnotationError, match=message) as found:
        load_annotations(tmp_path / "a.dat", SHAPE)
    assert "\n" not in str(found.value)


@dataclass
class Scan:
    """A slide whose scanned area lies at (y 200, x 300) of a larger canvas."""

    shape: tuple[int, int]
    bounds: Box
    canvas: Box
    path: str = "a.mrxs"
    mpp: tuple[float, float] | None = None


CROPPED = Scan((300, 400), Box(0, 0, 300, 400), Box(-200, -300, 1000, 1000))
UNCROPPED = Scan((1000, 1000), Box(200, 300, 300, 400), Box(0, 0, 1000, 1000))


@pytest.mark.parametrize(("slide", "at"), [(CROPPED, (10, 20)), (UNCROPPED, (210, 320))])
def test_qupath_counts_from_the_scanned_area_and_asap_from_the_canvas(tmp_path, slide, at):
    write(tmp_path / "a.geojson", thing(square(20, 10, 50), "A"), thing(square(5, 6, 7)))
    corners = [(320, 210), (370, 210), (370, 260), (320, 260)]
    points = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(corners))
    (tmp_path / "a.xml").write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="1" Type="Polygon" PartOfGroup="A"><Coordinates>'
        f"{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    expected = np.zeros(slide.shape, np.uint8)
    expected[at[0] : at[0] + 50, at[1] : at[1] + 50] = 1
    with pytest.warns(AnnotationWarning):
        drawn = load_annotations(tmp_path / "a.geojson", slide.shape, slide=slide)
    np.testing.assert_array_equal(drawn.read((0, 0, *slide.shape)), expected)
    other = shapely.from_geojson(json.dumps(drawn.others[0]["geometry"]))
    assert other.bounds[:2] == (5 + slide.bounds.x, 6 + slide.bounds.y)
    from_asap = load_annotations(tmp_path / "a.xml", slide.shape, slide=slide)
    np.testing.assert_array_equal(from_asap.read((0, 0, *slide.shape)), expected)
    drawn.fill_polygon([(150, 100), (150, 150), (200, 100)], 1, dense=True)
    for name in ("b.geojson", "b.xml"):
        save_annotations(drawn, tmp_path / name, slide=slide)
    features = json.loads((tmp_path / "b.geojson").read_text())["features"]
    scribble = next(f for f in features if "name" not in f["properties"])
    assert shapely.from_geojson(json.dumps(scribble["geometry"])).equals(shapely.box(20, 10, 70, 60))
    assert '<Coordinate Order="0" X="320.0" Y="210.0"/>' in (tmp_path / "b.xml").read_text()
    with pytest.warns(AnnotationWarning):
        again = load_annotations(tmp_path / "b.geojson", slide.shape, slide=slide)
    np.testing.assert_array_equal(again.read((0, 0, *slide.shape)), drawn.read((0, 0, *slide.shape)))
    back = load_annotations(tmp_path / "b.xml", slide.shape, slide=slide)
    np.testing.assert_array_equal(back.read((0, 0, *slide.shape)), drawn.read((0, 0, *slide.shape)))


@pytest.mark.parametrize("name", ["b.geojson", "b.xml", "b.sparseseg", "b.tif", "b.ome.zarr"])
def test_an_existing_file_is_replaced_only_when_asked(tmp_path, name):
    source, own, target = write(tmp_path / "a.geojson", TUMOUR), tmp_path / "own.sparseseg", tmp_path / name
    save_annotations(load_annotations(source, SHAPE), own)
    inside = target / "0" if name.endswith("zarr") else target
    inside.parent.mkdir(exist_ok=True)
    inside.write_bytes(b"the work of others")
    drawn = load_annotations(source, SHAPE)
    with pytest.raises(AnnotationError, match=r"exists already"):
        save_annotations(drawn, target)
    assert main(["convert", str(own), str(target)]) == 2
    assert inside.read_bytes() == b"the work of others"
    assert main(["convert", str(own), str(target), "--overwrite"]) == 0
    assert load_annotations(target, SHAPE).counts()[1] == 100 * 100


def test_the_shell_says_in_one_line_what_was_left_out(tmp_path, capsys):
    source = write(tmp_path / "a.geojson", TUMOUR, thing(square(0, 0, 200)), thing(square(0, 0, 9), objectType="cell"))
    mark = json.loads(source.read_text()) | {"napari-sparseseg": {"classes": [], "shape": list(SHAPE)}}
    source.write_text(json.dumps(mark))
    assert main(["convert", str(source), str(tmp_path / "b.geojson")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "napari-sparseseg: a.geojson: objects left out: 1 cells; 1 objects without a class of their own are kept but "
        "label nothing."
    )


def test_features_are_read_one_by_one_wherever_they_stand_in_the_file(tmp_path):
    head = {"napari-sparseseg": {"classes": [{"id": 7, "name": "Tumour", "colour": "#010203"}], "shape": list(SHAPE)}}
    for first, last in (({}, head), (head, {})):
        data = {**first, "features": [TUMOUR, TUMOUR], "type": "FeatureCollection", **last}
        (tmp_path / "a.geojson").write_text(json.dumps(data, indent=2), encoding="utf-8-sig")
        assert load_annotations(tmp_path / "a.geojson", None).counts() == {7: 100 * 100}
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "a.geojson").write_text(json.dumps([TUMOUR]), encoding=encoding)
        assert areas(load_annotations(tmp_path / "a.geojson", SHAPE)) == {"Tumour": 100 * 100}


@pytest.mark.parametrize("cut", [r"]}", r"}", '"type"', ":", ","])
@pytest.mark.parametrize("instead", ["", "x", ",,", "]"])
def test_torn_json_is_refused_in_one_line(tmp_path, cut, instead):
    text = write(tmp_path / "a.geojson", TUMOUR, TUMOUR).read_text()
    at = text.rindex(cut)
    (tmp_path / "a.geojson").write_text(text[:at] + instead + text[at + len(cut) :])
    with pytest.raises(AnnotationError, match=r"^a\.geojson: it is not valid JSON") as found:
        load_annotations(tmp_path / "a.geojson", SHAPE)
    assert "\n" not in str(found.value)


def test_many_polygons_take_little_more_memory_than_their_file(tmp_path):
    path = write(tmp_path / "a.geojson", *(thing(square(k % 300, k % 200, 5), f"c{k % 5}") for k in range(20_000)))
    data = path.read_bytes()
    tracemalloc.start()
    document = parse_geojson(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(document.drawn) == 20_000
    assert peak < 6 * len(data)
