"""Shapes read from a file with their class names, and how they become annotations.

Every reader parses its file to a `Document`; every writer replaces its file atomically.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from napari_sparseseg.annotations import Annotations, Shape
from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.files import write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from typing import TextIO

    from numpy.typing import NDArray

    Classes = Iterable[ClassDef | tuple[str, str] | str]
    Progress = Callable[[int, int], None]

Parsed = TypeVar("Parsed")
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
        """Whether its class means "no class": QuPath's ``Ignore*`` and other names that end with a star."""
        return self.name.rstrip().endswith("*")

    @property
    def extent(self) -> float:
        """Area of the outer ring's bounding box."""
        return float(np.prod(np.ptp(self.rings[0], axis=0))) if self.kind != "brush" else -1.0


@dataclass(slots=True)
class Document:
    """The contents of a file."""

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


class ClassLookup:
    """Finds classes by name, ignoring case, and appends those that are new.

    Parameters
    ----------
    classes
        The table to start from.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = list(make_classes(classes))
        self._index = {c.name.casefold(): k for k, c in enumerate(self.classes)}

    def id_of(self, name: str, colour: str = "") -> int:
        """The id of a class; a new one gets the lowest free id, and a colour of the palette where none is given.

        Raises
        ------
        AnnotationError
            When there are more classes than a label image can hold.
        """
        name = " ".join(name.split()) or UNCLASSIFIED
        known = self._index.get(name.casefold())
        if known is not None:
            return self.classes[known].id
        used = {c.id for c in self.classes}
        new_id = next((i for i in range(1, MAX_CLASS_ID + 1) if i not in used), None)
        if new_id is None:
            raise AnnotationError(f"the file has more than {MAX_CLASS_ID} classes, more than a label image can hold.")
        colour = colour if _COLOUR.fullmatch(colour) else PALETTE[(new_id - 1) % len(PALETTE)]
        self._index[name.casefold()] = len(self.classes)
        self.classes.append(ClassDef(new_id, name, colour))
        return new_id

    def recolour(self, name: str, colour: str) -> None:
        """Give a class that is in the table another colour."""
        index = self._index[" ".join(name.split()).casefold()]
        self.classes[index] = replace(self.classes[index], colour=colour)


def read_file(path: str | os.PathLike[str], parse: Callable[[bytes], Parsed]) -> Parsed:
    """What `parse` makes of a file's bytes.

    Raises
    ------
    AnnotationError
        Beginning with the file's name: where it cannot be opened, is too large, or `parse` refuses it.
    """
    source = Path(path)
    try:
        if source.stat().st_size > MAX_BYTES:
            raise AnnotationError(f"the file is larger than {MAX_BYTES >> 30} GB; split it.")
        return parse(source.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{source.name}: it cannot be opened: {error.strerror or error}.") from error
    except AnnotationError as error:
        raise AnnotationError(f"{source.name}: {error}") from error


def write_file(path: str | os.PathLike[str], write: Callable[[TextIO], None]) -> None:
    """Replace a text file atomically.

    Raises
    ------
    AnnotationError
        Where the file cannot be written.
    """
    target = Path(path)

    def write_part(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            write(file)

    try:
        write_atomic(target, write_part)
    except OSError as error:
        raise AnnotationError(f"cannot write {target}: {error.strerror or error}.") from error


def points_xy(values: object, least: int = 1) -> NDArray[np.float64]:
    """Points (n, 2) (y, x) from a list of [x, y] or [x, y, z].

    Raises
    ------
    AnnotationError
        Where they are not finite numbers.
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
    """Draw a file's shapes, large ones first so that small ones inside them stay visible, lines and dots last.

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
    table = ClassLookup(classes if classes else document.classes)
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
