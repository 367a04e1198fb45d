"""Annotations of ImageScope, HALO and NDP.view, as these programs write them, against shapely and hand numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import shapely
import tifffile

from napari_sparseseg import load_annotations
from napari_sparseseg.errors import AnnotationError, AnnotationWarning

SHAPE = (400, 500)


def pixels(annotations, name):
    number = next(c.id for c in annotations.classes if c.name == name)
    return annotations.read((0, 0, *SHAPE)) == number


def covered(polygon):
    """Pixels whose centre lies in a shapely polygon given in (x, y)."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    return shapely.contains_xy(polygon, x, y)


def imagescope_region(corners, kind=0, negative=0, number=1):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0" />' for x, y in corners)
    return (
        f'<Region Id="{number}" Type="{kind}" Zoom="0.1" Selected="0" ImageLocation="" ImageFocus="-1" Length="1" '
        f'Area="1" Text="" NegativeROA="{negative}" InputRegionId="0" Analyze="1" DisplayId="{number}"><Attributes/>'
        f"<Vertices>{vertices}</Vertices></Region>"
    )


def imagescope(*layers):
    text = '<Annotations MicronsPerPixel="0.252000">'
    for k, (name, colour, regions) in enumerate(layers, 1):
        text += (
            f'<Annotation Id="{k}" Name="{name}" ReadOnly="0" NameReadOnly="0" LineColorReadOnly="0" Incremental="0" '
            f'Type="4" LineColor="{colour}" Visible="1" Selected="1" MarkupImagePath="" MacroName=""><Attributes>'
            '<Attribute Name="Description" Id="0" Value=""/></Attributes><Regions><RegionAttributeHeaders>'
            '<AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/></RegionAttributeHeaders>'
            f"{''.join(regions)}</Regions><Plots/></Annotation>"
        )
    return text + "</Annotations>"


def test_imagescope(tmp_path):
    ring = [(50.5, 60), (210, 80), (180, 230), (40, 200)]
    hole = [(100, 100), (140, 100), (140, 150), (100, 150)]
    over_the_edge = [(30, 150), (90, 150), (90, 170), (30, 170)]
    text = imagescope(
        (
            "Tumor",
            255,
            [imagescope_region(ring), imagescope_region(hole, negative=1), imagescope_region(over_the_edge, 0, 1)],
        ),
        ("", 65280, [imagescope_region([(300, 50), (400, 50), (400, 90), (300, 90)], kind=1)]),
        (
            "Cyst",
            16711680,
            [imagescope_region([(300, 200), (400, 260)], kind=2), imagescope_region([(1, 1), (5, 5)], kind=3)],
        ),
    )
    (tmp_path / "a.xml").write_text(text)
    with pytest.warns(AnnotationWarning, match="1 arrows, rulers and other marks"):
        a = load_annotations(tmp_path / "a.xml", SHAPE)
    assert [(c.name, c.colour) for c in a.classes] == [
        ("Tumor", "#ff0000"), ("Layer 2", "#00ff00"), ("Cyst", "#0000ff"),
    ]  # fmt: skip
    expected = shapely.Polygon(ring) - shapely.Polygon(hole) - shapely.Polygon(over_the_edge)
    np.testing.assert_array_equal(pixels(a, "Tumor"), covered(expected))
    np.testing.assert_array_equal(pixels(a, "Layer 2"), covered(shapely.box(300, 50, 400, 90)))
    assert pixels(a, "Cyst").sum() == pytest.approx(np.pi * 50 * 30, rel=0.01)
    rows, columns = np.nonzero(pixels(a, "Cyst"))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (200, 260, 300, 400)


def test_halo(tmp_path):
    def region(corners, kind="Polygon", negative=0):
        vertices = "".join(f'<V X="{x}" Y="{y}" />' for x, y in corners)
        return (
            f'<Region Type="{kind}" HasEndcaps="0" NegativeROA="{negative}"><Vertices>{vertices}</Vertices><Comments />'
            "</Region>"
        )

    text = (
        '<?xml version="1.0"?><Annotations><Annotation LineColor="65535" Name="Tumour &amp; co" Visible="True">'
        "<Regions>"
        + region([(10, 20), (110, 20), (110, 90), (10, 90)])
        + region([(60, 40), (80, 60)], "Rectangle", 1)
        + region([(200, 20), (260, 60)], "Rectangle")
        + region([(300, 20), (340, 120)], "Ellipse")
        + region([(1, 2), (3, 4)], "Ruler")
        + '</Regions></Annotation><Annotation LineColor="255" Name="empty" Visible="False"><Regions /></Annotation>'
        "</Annotations>"
    )
    (tmp_path / "a.annotations").write_text(text)
    with pytest.warns(AnnotationWarning, match="1 arrows"):
        a = load_annotations(tmp_path / "a.annotations", SHAPE)
    assert [(c.name, c.colour) for c in a.classes] == [("Tumour & co", "#ffff00")]
    labels = pixels(a, "Tumour & co")
    expected = shapely.box(10, 20, 110, 90) - shapely.box(60, 40, 80, 60) | shapely.box(200, 20, 260, 60)
    np.testing.assert_array_equal(labels[:, :280], covered(expected)[:, :280])
    assert labels[:, 280:].sum() == pytest.approx(np.pi * 20 * 50, rel=0.01)


def test_a_damaged_region_is_counted_and_the_others_are_read(tmp_path):
    good = imagescope_region([(10, 10), (60, 10), (60, 60), (10, 60)])
    bad = imagescope_region([(10, 10), ("x", 10), (60, 60)])
    (tmp_path / "a.xml").write_text(imagescope(("A", 255, [bad, good])))
    with pytest.warns(
        AnnotationWarning, match=r"1 that cannot be used \(X of a vertex is 'x', which is not a number\)"
    ):
        a = load_annotations(tmp_path / "a.xml", SHAPE)
    assert a.counts() == {1: 2500}
    (tmp_path / "a.xml").write_text(imagescope(("A", 255, [bad])))
    with pytest.raises(AnnotationError, match=r"^a\.xml: X of a vertex is 'x'"):
        load_annotations(tmp_path / "a.xml", SHAPE)


@dataclass
class Slide:
    """What the reader of .ndpa files asks of a slide."""

    path: str
    shape: tuple[int, int] = SHAPE
    mpp: tuple[float, float] | None = (0.5, 0.25)


OFFSET_NM = (3_000_000, -1_500_000)
"""(x, y) of the image's centre from the centre of the glass slide."""


def write_ndpi(path):
    tags = [(code, "i", 1, value, True) for code, value in zip((65422, 65423), OFFSET_NM, strict=True)]
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", extratags=tags)
    return path


def nanometres(x, y):
    """By hand: 250 nm and 500 nm a pixel, from the middle (250, 200) of the image."""
    return round((x - 250) * 250 + OFFSET_NM[0]), round((y - 200) * 500 + OFFSET_NM[1])


def view(title, body, kind="freehand", unit="nanometers"):
    return (
        f'<ndpviewstate id="1"><title>{title}</title><details/><coordformat>{unit}</coordformat><lens>2.5</lens>'
        f'<x>99</x><y>98</y><z>0</z><showtitle>0</showtitle><annotation type="{kind}" displayname="Annotate" '
        f'color="#00FF00">{body}</annotation></ndpviewstate>'
    )


def points(corners, closed=1):
    inside = "".join("<point><x>{}</x><y>{}</y></point>".format(*nanometres(*c)) for c in corners)
    return f"<measuretype>0</measuretype><closed>{closed}</closed><pointlist>{inside}</pointlist>"


def test_ndp_view(tmp_path):
    ring = [(100, 40), (180, 40), (180, 120), (100, 120)]
    cx, cy = nanometres(300, 200)
    text = '<?xml version="1.0" encoding="utf-8" standalone="yes"?><annotations>' + "".join(
        [
            view("Tumour", points(ring)),
            view("line", points([(20, 300), (120, 300)], closed=0)),
            view("disc", f"<x>{cx}</x><y>{cy}</y><radius>10000</radius><measuretype>1</measuretype>", "circle"),
            view("spot", "<x>{}</x><y>{}</y>".format(*nanometres(400, 350)), "pin"),
            view("", points(ring)),
            view("length", "<x1>0</x1><y1>0</y1><x2>9</x2><y2>9</y2>", "linearmeasure"),
            view("odd", points(ring), unit="micrometers"),
        ]
    )
    (tmp_path / "a.ndpi.ndpa").write_text(text + "</annotations>")
    slide = Slide(str(write_ndpi(tmp_path / "a.tif")))
    expected = r"1 arrows.*1 that cannot be used \(its positions are in 'micrometers'.*1 objects without a class"
    with pytest.warns(AnnotationWarning, match=expected):
        a = load_annotations(tmp_path / "a.ndpi.ndpa", SHAPE, slide=slide)
    assert [(c.name, c.colour) for c in a.classes] == [(name, "#00FF00") for name in ("Tumour", "line", "disc", "spot")]
    np.testing.assert_array_equal(pixels(a, "Tumour"), covered(shapely.box(100, 40, 180, 120)))
    assert pixels(a, "line").sum() == pytest.approx(100 * 8 + np.pi * 16, rel=0.05)
    # 10 um: 40 px along x, 20 px along y
    rows, columns = np.nonzero(pixels(a, "disc"))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (180, 220, 260, 340)
    assert pixels(a, "spot")[350, 400]
    assert len(a.others) == 1


def test_ndp_view_needs_the_slide_it_belongs_to(tmp_path):
    (tmp_path / "a.ndpa").write_text(f"<annotations>{view('A', points([(1, 1), (9, 1), (9, 9)]))}</annotations>")
    with pytest.raises(AnnotationError, match="open or name the slide"):
        load_annotations(tmp_path / "a.ndpa", SHAPE)
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(AnnotationError, match="is not an NDPI"):
        load_annotations(tmp_path / "a.ndpa", SHAPE, slide=Slide(str(tmp_path / "plain.tif")))
    with pytest.raises(AnnotationError, match="resolution"):
        load_annotations(tmp_path / "a.ndpa", SHAPE, slide=Slide(str(write_ndpi(tmp_path / "a.tif")), mpp=None))


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "shift_jis", "big5", "utf-16", "koi8-r", "windows-1251"])
def test_names_in_the_encoding_that_the_file_declares(tmp_path, encoding):
    name = "опухоль" if encoding in ("koi8-r", "windows-1251") else "中文"
    text = imagescope((name, 255, [imagescope_region([(10, 10), (60, 10), (60, 60)])]))
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding))
    assert [c.name for c in load_annotations(tmp_path / "a.xml", SHAPE).classes] == [name]


@pytest.mark.parametrize("encoding", ["no-such-encoding", "hex", "ascii", "shift_jis"])
def test_a_wrong_encoding_is_one_clear_line(tmp_path, encoding):
    text = imagescope(("肿瘤", 255, [imagescope_region([(10, 10), (60, 10), (60, 60)])]))
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode("gb18030"))
    with pytest.raises(AnnotationError, match=r"^a\.xml: ") as found:
        load_annotations(tmp_path / "a.xml", SHAPE)
    assert "\n" not in str(found.value)
