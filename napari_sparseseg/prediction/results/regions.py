"""Regions of a slide to predict: from a file, from annotations, or as boxes; and as a mask of the label image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import shapely

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.files import split_regions, write_atomic
from napari_sparseseg.geometry import Box, Placement
from napari_sparseseg.io.measurements import PixelOutline
from napari_sparseseg.io.regions import NamedArea, areas_in_file, areas_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.io.files import SlideFrame

Regions: TypeAlias = Mapping[str, shapely.Geometry]
"""Polygons in level-0 (x, y) by name."""


def find_regions(
    asked: Regions | Sequence[tuple[int, int, int, int]] | str | PathLike[str],
    slide: SlideFrame,
    annotations: Annotations | None = None,
) -> dict[str, shapely.Geometry]:
    """The regions that are meant, each as a valid polygon of the slide.

    Parameters
    ----------
    asked
        Polygons by name; level-0 boxes; ``FILE`` or ``FILE:CLASS`` for the areas of an annotation file; or the name of
        a class whose areas in `annotations` are meant, such as QuPath's ``Region*``. A `Path` is a file in any case,
        ``:CLASS`` a class.
    slide
        The slide that they lie on.
    annotations
        Of that slide, for a name of a class.

    Raises
    ------
    PredictionError
        Where there is no such file or class, an outline is not an area, or none lies on the slide.
    AnnotationError
        Where the file cannot be read.
    """
    if isinstance(asked, Mapping):
        named = dict(asked)
    elif isinstance(asked, str | PathLike):
        named = _named(_areas(asked, slide, annotations))
    else:
        named = {f"region {k}": _box(box) for k, box in enumerate(asked, 1)}
    if not named:
        raise PredictionError("no region is given to predict in; name at least one, or leave regions out.")
    height, width = slide.shape
    whole = shapely.box(0, 0, width, height)
    found = {name: _valid(name, outline) for name, outline in named.items()}
    outside = [name for name, polygon in found.items() if not polygon.intersection(whole).area]
    if outside:
        raise PredictionError(
            f"region {outside[0]!r} lies outside the slide, which has {height} x {width} px (height x width): was it "
            f"drawn on another slide? {len(outside)} of {len(found)} regions lie outside."
        )
    return found


def _areas(asked: str | PathLike[str], slide: SlideFrame, annotations: Annotations | None) -> list[NamedArea]:
    """The areas of ``FILE``, of ``FILE:CLASS``, or of a class of the annotations."""
    text = fspath(asked)
    file, class_name = split_regions(text) if isinstance(asked, str) else (text, "")
    drawn = [] if annotations is None else areas_of(annotations)
    if isinstance(asked, str) and file and any(a.class_name.casefold() == text.casefold() for a in drawn):
        raise PredictionError(f"{text} is a file here and a class too; write ./{text} or :{text} for what you mean.")
    if file:
        return _wanted(areas_in_file(file, slide), class_name, file)
    if annotations is None:
        raise PredictionError(f"there is no file {text} to read regions from. Check the path.")
    return _wanted(drawn, class_name, "this slide")


def _wanted(areas: list[NamedArea], name: str, source: str) -> list[NamedArea]:
    wanted = [a for a in areas if not name or a.class_name.casefold() == name.strip().casefold()]
    if not wanted:
        names = ", ".join(sorted({a.class_name or "without a class" for a in areas})) or "none"
        what = f"area of class {name!r}" if name else "area"
        raise PredictionError(f"{source} has no {what}; it has areas of: {names}.")
    return wanted


def _named(areas: list[NamedArea]) -> dict[str, shapely.Geometry]:
    """By the name of the object or its class, numbered where several have the same."""
    names = [a.title or a.class_name or "region" for a in areas]
    count = Counter(names)
    taken: Counter[str] = Counter()
    out: dict[str, shapely.Geometry] = {}
    for area, name in zip(areas, names, strict=True):
        label = name
        while (count[name] > 1 and label == name) or label in out:
            taken[name] += 1
            label = f"{name} {taken[name]}"
        out[label] = area.polygon
    return out


def _box(box: Iterable[int]) -> shapely.Geometry:
    y, x, h, w = box
    if h <= 0 or w <= 0:
        raise PredictionError(f"box {(y, x, h, w)} is empty; give (y, x, height, width) in level-0 pixels.")
    return shapely.box(x, y, x + w, y + h)


def _valid(name: str, outline: shapely.Geometry) -> shapely.Geometry:
    """The outline as valid polygons, even where it crosses itself."""
    if not isinstance(outline, shapely.Geometry) or not np.isfinite(shapely.get_coordinates(outline)).all():
        raise PredictionError(f"region {name!r} is not a shapely geometry with finite coordinates.")
    polygons = [p for p in shapely.get_parts(shapely.make_valid(outline)) if p.geom_type.endswith("Polygon") and p.area]
    if not polygons:
        raise PredictionError(f"region {name!r} encloses no area ({outline.geom_type}); give a polygon.")
    return shapely.multipolygons([q for p in polygons for q in shapely.get_parts(p)])


@dataclass(frozen=True)
class RegionMask:
    """Regions as a mask of a frame of the slide: a pixel is inside where its centre is.

    Parameters
    ----------
    regions
        From `find_regions`.
    """

    regions: Regions

    def __post_init__(self) -> None:
        for polygon in self.regions.values():
            shapely.prepare(polygon)

    def overlaps(self, region: Box, frame: Frame) -> bool:
        """Whether any pixel may lie inside, of a region of `frame`."""
        y, x, h, w = frame.level0(region)
        box = shapely.box(x, y, x + w, y + h)
        return any(polygon.intersects(box) for polygon in self.regions.values())

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Boolean (h, w): which pixels of a region of `frame` are inside."""
        inside = np.zeros((region.height, region.width), bool)
        y, x, h, w = frame.level0(region)
        box = shapely.box(x, y, x + w, y + h)
        for polygon in self.regions.values():
            if polygon.contains(box):
                return np.ones_like(inside)
            if polygon.intersects(box):
                inside |= PixelOutline(polygon, Placement(frame, None)).mask(region)
        return inside

    def to_json(self) -> dict[str, str]:
        """The regions as hexadecimal WKB by name, exact."""
        return {name: shapely.to_wkb(polygon, hex=True) for name, polygon in self.regions.items()}

    @classmethod
    def from_json(cls, data: dict[str, str]) -> RegionMask:
        """What `to_json` gave."""
        return cls({name: shapely.from_wkb(text) for name, text in data.items()})

    def save(self, path: Path) -> None:
        """Write a file, for workers elsewhere."""
        write_atomic(path, lambda temporary: temporary.write_text(json.dumps(self.to_json()), encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> RegionMask:
        """Read a file written by `save`."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
