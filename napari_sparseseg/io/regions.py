"""Areas in annotation files and in annotations, with their holes, as polygons and without a raster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.files import load_annotations, read_document
from napari_sparseseg.io.geojson import classification_of
from napari_sparseseg.io.shapes import moved
from napari_sparseseg.io.trace import trace

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.io.files import SlideFrame


@dataclass(frozen=True, slots=True)
class NamedArea:
    """A polygon in level-0 (x, y), perhaps invalid, with its class's name and its own; empty if it has none."""

    class_name: str
    title: str
    polygon: shapely.Geometry


def areas_in_file(path: str | os.PathLike[str], slide: SlideFrame) -> list[NamedArea]:
    """The areas of an annotation file in the order of the file; strokes, lines and dots have none.

    Parameters
    ----------
    path
        Any file that `load_annotations` reads. Of GeoJSON and XML the outlines are taken as they are, also those
        without a class and of QuPath's ``Region*``.
    slide
        The slide, for where its coordinates begin.

    Raises
    ------
    AnnotationError
        Where the file cannot be read.
    """
    source = Path(path)
    found = read_document(source, slide)
    if found is None:
        return areas_of(load_annotations(source, slide.shape, slide=slide))
    document, origin = found
    if document.errors and not document.drawn and not document.others:
        raise AnnotationError(f"{source.name}: {document.errors[0]}")
    drawn = [NamedArea(d.name, d.title, _polygon(d.rings, origin)) for d in document.drawn if d.kind != "brush"]
    others = [f for name, f in document.others if not name]
    return drawn + list(_of_features(moved(f, origin) for f in others))


def areas_of(annotations: Annotations) -> list[NamedArea]:
    """The areas of annotations: connected regions, dense regions, and objects without a class, as ``Region*``."""
    snapshot = annotations.snapshot()
    names = {c.id: c.name for c in snapshot.classes}
    found = [
        NamedArea(names[r.class_id], "", _polygon(r.parts(), (0, 0))) for r in snapshot.dense_regions if r.class_id
    ]
    for outline in trace(snapshot.scribbles):
        found.append(NamedArea(names[outline.class_id], "", _polygon((outline.shell, *outline.holes), (0, 0))))
    return found + list(_of_features(annotations.others))


def _of_features(features: Iterable[dict[str, Any]]) -> Iterator[NamedArea]:
    for feature in features:
        properties = feature.get("properties") or {}
        title = properties.get("name")
        geometry = shapely.from_geojson(json.dumps(feature["geometry"]), on_invalid="ignore")
        if geometry is not None and geometry.geom_type in ("Polygon", "MultiPolygon"):
            yield NamedArea(classification_of(properties)[0], title if isinstance(title, str) else "", geometry)


def _polygon(rings: Sequence[NDArray[Any]], origin: tuple[float, float]) -> shapely.Geometry:
    """Rings (n, 2) of (y, x), the outer one first, as a polygon in (x, y)."""
    shell, *holes = [(ring + origin)[:, ::-1] for ring in rings]
    return shapely.Polygon(shell, holes)
