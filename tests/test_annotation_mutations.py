"""Annotation files with values, elements and attributes exchanged: read, with a warning, or refused in one line."""

from __future__ import annotations

import copy
import json
import warnings
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from napari_sparseseg import Annotations, load_annotations, save_annotations
from napari_sparseseg.errors import AnnotationWarning, SparseSegError

SHAPE = (120, 150)
RING = [[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]
GEOJSON = {
    "type": "FeatureCollection",
    "napari-sparseseg": {"classes": [{"id": 1, "name": "a", "colour": "#010203"}], "shape": list(SHAPE)},
    "features": [
        {
            "type": "Feature", "id": "PathAnnotationObject",
            "geometry": {"type": "Polygon", "coordinates": [RING, [[20, 20], [30, 20], [30, 30]]], "plane": {"z": 0}},
            "properties": {
                "objectType": "annotation", "classification": {"names": ["a", "b"], "color": [1, 2, 3]},
                "isLocked": True, "measurements": [{"name": "m", "value": 1.5}], "metadata": {"radius": "3"},
                "childObjects": [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}}],
            },
        },
        {
            "type": "Feature", "properties": {"classification": "c", "metadata": {"napari-sparseseg": "dense"}},
            "geometry": {
                "type": "GeometryCollection", "geometries": [{"type": "MultiPolygon", "coordinates": [[RING]]}]
            },
        },
        {
            "type": "Feature", "properties": {"classification": {"name": "Ignore*", "colorRGB": -65536}},
            "geometry": {"type": "MultiLineString", "coordinates": [[[1, 1], [90, 90]], [[5, 5], [6, 6, 7]]]},
        },
    ],
}  # fmt: skip
XML = {
    "asap": """<ASAP_Annotations><Annotations>
        <Annotation Name="dense region 1" Type="Spline" PartOfGroup="a" Color="#010203"><Coordinates>
        <Coordinate Order="0" X="10" Y="10"/><Coordinate Order="1" X="60,5" Y="10"/><Coordinate X="60" Y="60"/>
        </Coordinates></Annotation></Annotations>
        <AnnotationGroups><Group Name="a" PartOfGroup="None" Color="#010203"/></AnnotationGroups></ASAP_Annotations>""",
    "layers": """<Annotations><Annotation Id="1" Name="a" LineColor="255"><Regions>
        <Region Type="0" NegativeROA="0"><Vertices><Vertex X="10" Y="10"/><Vertex X="60" Y="10"/><Vertex X="60" Y="60"/>
        </Vertices></Region>
        <Region Type="2" NegativeROA="1"><Vertices><V X="20" Y="20"/><V X="40" Y="30"/></Vertices></Region>
        </Regions></Annotation></Annotations>""",
    "ndpa": """<annotations><ndpviewstate id="1"><title>a</title><coordformat>nanometers</coordformat>
        <annotation type="circle" color="#010203"><x>1000</x><y>1000</y><radius>5000</radius>
        <pointlist><point><x>1</x><y>2</y></point></pointlist></annotation></ndpviewstate></annotations>""",
}
ODD = st.sampled_from(
    [
        None, True, -1, 0, 3, 10**30, 1e308, float("nan"), float("inf"), "", " ", "x", "NaN", "a" * 600, "\ud800",
        "Region*", [], {}, [[]], [[[]]], [1], [1, 2], [[1, 2]], [[1, 2], [3]], {"type": "Point"}, {"type": "Feature"},
        "Polygon", "dense", "None",
    ]
)  # fmt: skip


def outcome(path, slide=None):
    """Read, use and write what was read; errors are one line of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", AnnotationWarning)
            found = load_annotations(path, SHAPE, slide=slide)
            assert all(0 <= n <= SHAPE[0] * SHAPE[1] for n in found.counts().values())
            for name in ("b.geojson", "b.xml", "b.sparseseg"):
                save_annotations(found, path.with_name(name), overwrite=True)
            json.loads(path.with_name("b.geojson").read_text(), parse_constant=pytest.fail)
            again = Annotations.from_geojson(path.with_name("b.geojson"), SHAPE)
            assert {k: n for k, n in again.counts().items() if n} == {k: n for k, n in found.counts().items() if n}
    except SparseSegError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1000


def spots(value, path=()):
    """The paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from spots(inner, (*path, key))


ALL_SPOTS = list(spots(GEOJSON))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(ALL_SPOTS), ODD), min_size=1, max_size=4), drop=st.booleans())
@example(changes=[(("features", 2, "geometry", "coordinates"), [[]])], drop=False)  # lines without a point
def test_geojson_with_values_exchanged(tmp_path, changes, drop):
    data = copy.deepcopy(GEOJSON)
    for at, odd in changes:
        try:
            holder = data
            for key in at[:-1]:
                holder = holder[key]
            if drop and isinstance(holder, dict):
                holder.pop(at[-1], None)
            else:
                holder[at[-1]] = odd
        except (LookupError, TypeError):
            continue  # an earlier change has taken it away
    (tmp_path / "a.geojson").write_text(json.dumps(data))
    outcome(tmp_path / "a.geojson")


class Scan:
    """What the reader of .ndpa files asks of a slide."""

    shape, mpp = SHAPE, (0.5, 0.5)

    def __init__(self, path):
        self.path = str(path)


TEXTS = st.sampled_from(
    ["", " ", "x", "nan", "1e400", "-5", "1,5", "9" * 400, "None", "Dot", "Rectangle", "2", "True", "a" * 600]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", XML)
@given(data=st.data())
def test_xml_with_elements_and_attributes_exchanged(tmp_path, kind, data):
    import numpy as np
    import tifffile

    ndpi = tmp_path / "slide.tif"
    if not ndpi.exists():
        tags = [(code, "i", 1, 0, True) for code in (65422, 65423)]
        tifffile.imwrite(ndpi, np.zeros((16, 16), np.uint8), extratags=tags)
    root = ElementTree.fromstring(XML[kind])  # noqa: S314 - our own text
    elements = list(root.iter())
    for _ in range(data.draw(st.integers(1, 4))):
        element = data.draw(st.sampled_from(elements))
        act = data.draw(st.sampled_from(["attribute", "drop", "text", "clear", "double"]))
        if act in ("attribute", "drop") and element.attrib:
            key = data.draw(st.sampled_from(sorted(element.attrib)))
            element.attrib.pop(key)
            if act == "attribute":
                element.set(key, data.draw(TEXTS))
        elif act == "text":
            element.text = data.draw(TEXTS)
        elif act == "clear" and element is not root:
            element.clear()
        elif act == "double":
            element.extend(copy.deepcopy(list(element)))
    (tmp_path / "a.xml").write_bytes(ElementTree.tostring(root))
    outcome(tmp_path / "a.xml", Scan(ndpi) if kind == "ndpa" else None)
