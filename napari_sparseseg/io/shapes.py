"""Drawings from files, before they are drawn: shapes with class names, and the class table they make."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations import Annotations, Shape
from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    Classes = Iterable[ClassDef | tuple[str, str] | str]
    Progress = Callable[[int, int], None]

UNCLASSIFIED = "unclassified"
THIN_RADIUS = 4.0
"""Radius in level-0 pixels at which lines and dots without a width are drawn."""
MAX_POINTS = 50_000_000
MAX_BYTES = 2 << 30
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(slots=True)
class Drawn:
    """A shape from a file; coordinates (y, x) in level-0 pixels."""

    name: str
    kind: str
    rings: list[NDArray[np.float64]]
    colour: str = ""
    radius: float = 0.0

    @property
    def ignored(self) -> bool:
        """Whether its class says that these pixels have none: QuPath's ``Ignore*`` and other names with a star."""
        return self.name.rstrip().endswith("*")

    @property
    def extent(self) -> float:
        """Area of the outer ring's bounding box."""
        return float(np.prod(np.ptp(self.rings[0], axis=0))) if self.kind != "brush" else -1.0


@dataclass(slots=True)
class Document:
    """What a file holds."""

    drawn: list[Drawn] = field(default_factory=list)
    classes: list[ClassDef] = field(default_factory=list)
    """Its class table, where it has one."""
    points: int = 0

    def add(self, shape: Drawn) -> None:
        """Append a shape.

        Raises
        ------
        AnnotationError
            When there are more points than fit.
        """
        self.points += sum(map(len, shape.rings))
        if self.points > MAX_POINTS:
            raise AnnotationError(
                f"there are more than {MAX_POINTS} points in the file; split it or simplify the outlines."
            )
        self.drawn.append(shape)


class ClassTable:
    """Finds classes by name, whatever its case, and appends those that are new."""

    def __init__(self, classes: Classes) -> None:
        self.classes = list(make_classes(classes))
        self._ids = {c.name.casefold(): c.id for c in self.classes}

    def id_of(self, name: str, colour: str = "") -> int:
        """The id of a class name.

        Raises
        ------
        AnnotationError
            When there are more classes than a label image can hold.
        """
        name = " ".join(name.split()) or UNCLASSIFIED
        known = self._ids.get(name.casefold())
        if known is not None:
            return known
        new_id = max((c.id for c in self.classes), default=0) + 1
        if new_id > MAX_CLASS_ID:
            raise AnnotationError(f"the file has more than {MAX_CLASS_ID} classes, more than a label image can hold.")
        colour = colour if _COLOUR.fullmatch(colour) else PALETTE[(new_id - 1) % len(PALETTE)]
        self.classes.append(ClassDef(new_id, name, colour))
        self._ids[name.casefold()] = new_id
        return new_id


def points_xy(values: object, least: int = 1) -> NDArray[np.float64]:
    """Points (n, 2) (y, x) from a list of [x, y] or [x, y, z].

    Raises
    ------
    AnnotationError
        Where they are anything else than finite numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise AnnotationError("coordinates must be pairs of numbers; the file has lists of other lengths.") from error
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] not in (2, 3):
        raise AnnotationError(f"coordinates must be pairs of numbers, found {_short(values)}.")
    return as_points(array[:, 1::-1], least)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_annotations(
    document: Document, shape: tuple[int, int], classes: Classes | None, progress: Progress | None = None
) -> Annotations:
    """Draw what a file holds, large shapes first so that what lies inside them stays visible, lines and dots last.

    Parameters
    ----------
    document
        From a reader.
    shape
        Slide (H, W) in level-0 pixels.
    classes
        Table to start from; names that are not in it are appended. None: the file's own table.
    progress
        Called now and then with (drawn, all).
    """
    table = ClassTable(classes if classes else document.classes)
    if classes:
        for own in document.classes:
            table.id_of(own.name, own.colour)
    shapes = []
    order = sorted(document.drawn, key=lambda d: -d.extent)
    ids = {d.name: table.id_of(d.name, d.colour) for d in document.drawn if not d.ignored}
    for d in order:
        if d.ignored and d.kind == "dense":
            continue
        shapes.append(Shape(d.kind, 0 if d.ignored else ids[d.name], d.rings, d.radius))
    out = Annotations(shape, table.classes)
    out.draw(shapes, progress)
    out.forget_history()
    return out
