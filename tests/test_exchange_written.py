"""What is written for other programs: exact where it is read back, and as an independent program sees it."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw

from napari_sparseseg import Annotations
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io import load_annotations, read_geojson, save_annotations, write_labels
from tests.helpers.data import labelled_polygon

SHAPE = (2900, 2300)
WHOLE = (0, 0, *SHAPE)


@pytest.fixture(scope="module")
def drawn():
    """Strokes over strokes, erased parts, holes, a dense region, and something at the rim of the slide."""
    rng = np.random.default_rng(4)
    a = Annotations(SHAPE, [("tumour & <co>", "#e6194b"), ("stroma", "#3cb44b")])
    for k in range(12):
        start = rng.uniform(200, 2000, 2)
        a.paint(start + np.cumsum(rng.normal(0, 60, (12, 2)), axis=0), float(rng.uniform(1, 60)), 1 + k % 2)
    a.fill_polygon([(50, 50), (50, 700), (650, 700), (650, 50)], 2)
    a.erase([(300, 300), (330, 420)], 40)
    a.erase([(560, 200)], 15)
    a.paint([(2899, 2299)], 30, 1)
    a.fill_polygon([(900.25, 1200), (900.25, 2100), (1800, 1700)], 1, dense=True)
    return a


@pytest.mark.parametrize("name", ["a.xml", "a.geojson", "a.sparseseg", "a.tif", "a.ome.tiff", "a.ome.zarr"])
def test_every_format_reads_back_to_the_same_pixels(drawn, tmp_path, name):
    save_annotations(drawn, tmp_path / name)
    back = load_annotations(tmp_path / name, SHAPE)
    np.testing.assert_array_equal(back.read(WHOLE), drawn.read(WHOLE))
    assert back.counts() == drawn.counts()
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("name", ["a.xml", "a.geojson"])
@pytest.mark.parametrize("near", [-1e-3, 1e-3, -1e-4, 1e-4, -1e-8, 1e-8])
def test_a_side_that_passes_pixel_centres_ever_so_closely(tmp_path, name, near):
    """Nothing between drawing, keeping, writing and reading may move a corner by any amount."""
    a = Annotations(SHAPE, ["a", "b"])
    side = 1000.5 + near  # centres of pixels are at halves
    a.fill_polygon([(side, side), (side, 1200 + side), (900 + side, 1200 + side), (900 + side, side)], 1, dense=True)
    save_annotations(a, tmp_path / name)
    back = load_annotations(tmp_path / name, SHAPE)
    np.testing.assert_array_equal(back.read(WHOLE), a.read(WHOLE))
    for annotations in (a, back):
        annotations.remove_dense_region(annotations.dense_regions[0].id)
        assert not annotations.read(WHOLE).any()


@pytest.mark.parametrize("name", ["slide.tif", "slide.ome.zarr"])
def test_label_images_never_replace_what_may_be_the_slide(drawn, tmp_path, name):
    slide = tmp_path / name
    kept = slide / "0" if name.endswith("zarr") else slide
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"years of work")
    with pytest.raises(AnnotationError, match="exists already"):
        save_annotations(drawn, slide)
    assert kept.read_bytes() == b"years of work"


@pytest.mark.parametrize("name", ["a.xml", "a.geojson"])
def test_outlines_keep_dense_regions_and_classes(drawn, tmp_path, name):
    save_annotations(drawn, tmp_path / name)
    back = load_annotations(tmp_path / name, SHAPE)
    assert [(c.name, c.colour) for c in back.classes] == [(c.name, c.colour) for c in drawn.classes]
    assert len(back.dense_regions) == 1
    np.testing.assert_allclose(back.dense_regions[0].points[:3], drawn.dense_regions[0].points, atol=1e-3)
    np.testing.assert_array_equal(back.read(WHOLE, scribbles_only=True), drawn.read(WHOLE, scribbles_only=True))


def test_asap_xml_is_what_asap_writes(drawn, tmp_path):
    save_annotations(drawn, tmp_path / "a.xml")
    root = ElementTree.parse(tmp_path / "a.xml").getroot()  # noqa: S314
    assert root.tag == "ASAP_Annotations"
    assert [g.get("Name") for g in root.iter("Group")] == ["tumour & <co>", "stroma"]
    assert [g.get("Color") for g in root.iter("Group")] == ["#e6194b", "#3cb44b"]
    for annotation in root.iter("Annotation"):
        assert annotation.get("Type") == "Polygon"
        assert annotation.get("PartOfGroup") in ("tumour & <co>", "stroma")
        order = [int(c.get("Order")) for c in annotation.iter("Coordinate")]
        assert order == list(range(len(order)))
        assert len(order) >= 3


def test_label_tiff_as_others_see_it(drawn, tmp_path):
    import tifffile

    write_labels(drawn, tmp_path / "a.ome.tif", downsample=4, mpp=0.25)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        image = tiff.asarray()
        assert 'PhysicalSizeX="1.0"' in tiff.ome_metadata
        assert tiff.pages[0].is_tiled
    # the level-0 pixel under the centre of pixel i at 4x is 4 i + 2
    rows, columns = (np.minimum(np.arange(n) * 4 + 2, side - 1) for n, side in zip(image.shape, SHAPE, strict=True))
    np.testing.assert_array_equal(image, drawn.read(WHOLE)[np.ix_(rows, columns)])


def test_ome_zarr_labels_hold_only_what_is_labelled(tmp_path):
    import zarr

    a = Annotations((40_000, 40_000), ["a"])
    a.paint([(20_000, 20_000)], 50, 1)
    write_labels(a, tmp_path / "a.ome.zarr", mpp=0.5)
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r")["labels/annotations"]
    assert group["0"].shape == (40_000, 40_000)
    assert group["0"].nchunks_initialized <= 4
    scale = group.attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [0.5, 0.5]
    assert int((group["0"][19_900:20_100, 19_900:20_100] == 1).sum()) == a.counts()[1]


def test_what_cannot_be_written_is_refused_and_keeps_what_was_there(drawn, tmp_path):
    with pytest.raises(AnnotationError, match=r"\.sparseseg"):
        save_annotations(drawn, tmp_path / "a.png")
    with pytest.raises(AnnotationError, match="level-0 pixels per pixel"):
        write_labels(drawn, tmp_path / "a.tif", downsample=0.5)
    with pytest.raises(AnnotationError, match="cannot write"):
        write_labels(drawn, tmp_path / "no" / "such" / "a.tif")
    write_labels(drawn, tmp_path / "a.tif", downsample=16)
    before = (tmp_path / "a.tif").read_bytes()
    with pytest.raises(AnnotationError, match="exists already"):
        write_labels(drawn, tmp_path / "a.tif", downsample=8)
    assert (tmp_path / "a.tif").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def _scanned(rings, height, width):
    """Even-odd by walking every row through all sides: slow, plain, and not the program's rasteriser."""
    out = np.zeros((height, width), bool)
    for i in range(height):
        y, xs = i + 0.5, []
        for ring in rings:
            for (ya, xa), (yb, xb) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if (ya <= y) != (yb <= y):
                    xs.append(xa + (y - ya) * (xb - xa) / (yb - ya))
        for j in range(width):
            out[i, j] = sum(x <= j + 0.5 for x in xs) % 2 == 1
    return out


@pytest.mark.parametrize("seed", range(12))
def test_polygons_with_level_and_upright_sides_against_a_scan(tmp_path, seed):
    """Corners on whole and half pixels, so that sides run along and through centres."""
    rng = np.random.default_rng(seed)
    ring = (rng.integers(0, 80, (rng.integers(4, 9), 2)) / 2.0).tolist()
    ring = [corner for k, (y, x) in enumerate(ring) for corner in ((y, x), (y, ring[(k + 1) % len(ring)][1]))]
    hole = [(10.0, 10.0), (10.0, 20.5), (20.5, 20.5), (20.5, 10.0)]
    rings = [ring, hole]
    coordinates = [[[x, y] for y, x in [*r, r[0]]] for r in rings]
    (tmp_path / "a.geojson").write_text(json.dumps(labelled_polygon(coordinates)))
    labels = read_geojson(tmp_path / "a.geojson", (48, 48)).read((0, 0, 48, 48))
    np.testing.assert_array_equal(labels > 0, _scanned(rings, 48, 48))


def test_a_rectangle_across_many_chunks_against_pillow(tmp_path):
    y0, x0, y1, x1 = 100, 250, 1700, 2050
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    (tmp_path / "a.geojson").write_text(json.dumps(labelled_polygon([corners])))
    labels = read_geojson(tmp_path / "a.geojson", SHAPE).read(WHOLE)
    expected = Image.new("L", SHAPE[::-1])
    ImageDraw.Draw(expected).rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)
    np.testing.assert_array_equal(labels, np.asarray(expected))


def test_locked_ignored_derived_and_brushes_together(tmp_path):
    def feature(geometry, **properties):
        return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}

    def square(y, x, side):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        return {"type": "Polygon", "coordinates": [ring]}

    features = [
        feature(square(0, 0, 100), classification={"name": "Tumor", "color": [200, 0, 0]}, isLocked=True),
        feature(square(20, 20, 30), classification={"name": "Ignore*", "color": [180, 180, 180]}),
        feature(square(0, 200, 40), classification={"names": ["Tumor", "Positive"], "color": [250, 62, 62]}),
        feature(
            {"type": "LineString", "coordinates": [[300, 20], [340, 20]]},
            classification={"name": "Stroma"},
            metadata={"radius": "6"},
        ),
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    a = load_annotations(tmp_path / "a.geojson", (400, 400))
    ids = {c.name: c.id for c in a.classes}
    assert set(ids) == {"Tumor", "Tumor: Positive", "Stroma"}
    assert a.counts()[ids["Tumor"]] == 100 * 100 - 30 * 30
    assert a.counts()[ids["Tumor: Positive"]] == 40 * 40
    assert a.counts()[ids["Stroma"]] == pytest.approx(40 * 12 + np.pi * 36, rel=0.03)
    assert next(c for c in a.classes if c.name == "Tumor").colour == "#c80000"
