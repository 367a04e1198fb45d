"""Shapes read from a file with their class names, and how they become annotations."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.annotations import Annotations, Shape
from napari_sparseseg.annotations.raster import as_points
from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError, AnnotationWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    Classes = Iterable[ClassDef | tuple[str, str] | str]
    Progress = Callable[[int, int], None]
    Rings = list[NDArray[np.float64]]

THIN_RADIUS = 4.0
"""Radius in level-0 pixels at which lines and dots without a width are drawn."""
MAX_POINTS = 50_000_000
MAX_OTHERS = 10_000
"""Objects that label nothing are kept up to this number."""
REGION = "region*"
"""QuPath's class, casefolded, of areas in which to train or measure; it says nothing about the tissue in them."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
logger = logging.getLogger(__name__)


class FileLimitError(AnnotationError):
    """A file is too large, whatever else is in it."""


@dataclass(slots=True)
class Drawn:
    """A shape from a file; coordinates (y, x) in pixels of the file's frame.

    Without a `name` it has no class; then, and for QuPath's classes that end with a star, it labels nothing.
    """

    name: str
    kind: str
    rings: Rings
    colour: str = ""
    radius: float = 0.0
    title: str = ""
    """The object's own name."""

    def feature(self) -> dict[str, Any]:
        """As GeoJSON, without a class."""
        rings = [ring[:, ::-1].tolist() for ring in self.rings]
        if self.kind == "brush":
            geometry = {"type": "MultiLineString", "coordinates": [r if len(r) > 1 else r * 2 for r in rings]}
        else:
            geometry = {"type": "Polygon", "coordinates": [[*r, r[0]] for r in rings]}
        return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}

    @property
    def extent(self) -> float:
        """Area of the outer ring's bounding box."""
        if self.kind == "brush":
            return -1.0
        (y0, x0), (y1, x1) = self.rings[0].min(axis=0).tolist(), self.rings[0].max(axis=0).tolist()
        return float((y1 - y0) * (x1 - x0))


@dataclass(slots=True)
class Document:
    """The contents of a file.

    Attributes
    ----------
    drawn
        What to draw.
    classes
        Its class table, where it has one.
    others
        Objects that label nothing, as GeoJSON features in the file's frame, with the names of their classes.
    left_out
        How many objects were left out, by reason.
    errors
        Why objects could not be used, one message each.
    stars
        Whether class names that end with a star have QuPath's meaning: ``Ignore*`` clears what lies under it.
    """

    drawn: list[Drawn] = field(default_factory=list)
    classes: list[ClassDef] = field(default_factory=list)
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    stars: bool = False
    points: int = 0

    def add(self, shape: Drawn) -> None:
        """Append a shape; one without a name is kept among the others.

        Raises
        ------
        FileLimitError
            When there are more points than fit.
        """
        self.points += sum(map(len, shape.rings))
        if self.points > MAX_POINTS:
            raise FileLimitError(
                f"there are more than {MAX_POINTS} points in the file; split it or simplify the outlines."
            )
        if shape.name.strip():
            self.drawn.append(shape)
        else:
            self.keep("", shape.feature())

    def keep(self, name: str, feature: dict[str, Any]) -> None:
        """Append an object that labels nothing, unless a class of its `name` is in the table."""
        if len(self.others) < MAX_OTHERS:
            self.others.append((name, feature))
        else:
            self.left_out["without a class, too many to keep"] += 1


class ClassLookup:
    """Finds classes by name, ignoring case, spacing and Unicode form, and appends those that are new.

    Parameters
    ----------
    classes
        The table to start from.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = list(make_classes(classes))
        self._index = {_key(c.name): k for k, c in enumerate(self.classes)}

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._index

    def id_of(self, name: str, colour: str = "") -> int:
        """The id of a class; a new one gets the lowest free id, and a colour of the palette where none is given.

        Raises
        ------
        FileLimitError
            When there are more classes than a label image can hold.
        """
        known = self._index.get(_key(name))
        if known is not None:
            return self.classes[known].id
        used = {c.id for c in self.classes}
        new_id = next((i for i in range(1, MAX_CLASS_ID + 1) if i not in used), None)
        if new_id is None:
            raise FileLimitError(f"the file has more than {MAX_CLASS_ID} classes, more than a label image can hold.")
        colour = colour if _COLOUR.fullmatch(colour) else PALETTE[(new_id - 1) % len(PALETTE)]
        self._index[_key(name)] = len(self.classes)
        self.classes.append(ClassDef(new_id, plain_name(name), colour))
        return new_id

    def recolour(self, name: str, colour: str) -> None:
        """Give a class that is in the table another colour."""
        index = self._index[_key(name)]
        self.classes[index] = replace(self.classes[index], colour=colour)


def plain_name(name: str) -> str:
    """A class name in Unicode's composed form (NFC), in one line, without surrounding or repeated spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", plain_name(name).casefold())


def points_xy(values: Any, least: int = 1) -> NDArray[np.float64]:
    """Points (n, 2) (y, x) from a list of positions of 2 to 4 numbers, x and y first.

    Raises
    ------
    AnnotationError
        Where they are not finite numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # positions of different lengths
        if not all(_is_position(p) for p in values):
            raise AnnotationError(f"coordinates must be pairs of numbers, found {_short(values)}.") from None
        array = np.asarray([p[:2] for p in values])
    if array.dtype.kind not in "iuf" or array.ndim != 2 or not 2 <= array.shape[1] <= 4:
        raise AnnotationError(f"coordinates must be pairs of numbers, found {_short(values)}.")
    return as_points(array[:, 1::-1], least)


def _is_position(value: object) -> bool:
    return isinstance(value, list) and 2 <= len(value) <= 4 and all(isinstance(n, (int, float)) for n in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_annotations(
    document: Document,
    shape: tuple[int, int],
    classes: Classes | None,
    *,
    name: str = "",
    origin: tuple[float, float] = (0.0, 0.0),
    progress: Progress | None = None,
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
    name
        Of the file, for warnings.
    origin
        Level-0 (y, x) of the file's (0, 0).
    progress
        Called now and then with (drawn, all).

    Raises
    ------
    AnnotationError
        Where none of the objects could be used, or there are too many classes.

    Warns
    -----
    AnnotationWarning
        When objects were left out, or label nothing.
    """
    if document.errors and not document.drawn and not document.others:
        raise AnnotationError(document.errors[0])
    table = ClassLookup(classes if classes else document.classes)
    if classes:
        for own in document.classes:
            table.id_of(own.name, own.colour)
    ids: dict[str, int] = {}
    for d in document.drawn:  # in the order of the file, so that ids are
        if d.name not in ids:
            known = d.name in table or not (document.stars and d.name.endswith("*"))
            ids[d.name] = table.id_of(d.name, d.colour) if known else 0
    # 0 clears what lies under it
    document.drawn = [d for d in document.drawn if ids[d.name] or (_key(d.name) != REGION and d.kind != "dense")]
    out, number = Annotations(shape, table.classes), len(document.drawn)
    out.draw(_large_first(document, ids, origin), progress, of=number)
    others = [moved(feature, origin) for kind, feature in document.others if kind not in table]
    out.set_others(others)
    out.forget_history()
    _report(name, document, len(others))
    return out


def _large_first(document: Document, ids: dict[str, int], origin: tuple[float, float]) -> Iterator[Shape]:
    """The shapes in the order of drawing; each is forgotten as it is taken, so that cells are not held twice."""
    drawn: list[Drawn | None] = [*document.drawn]
    document.drawn.clear()
    extents = np.array([d.extent for d in drawn if d is not None])
    for k in np.argsort(-extents, kind="stable").tolist():
        d, drawn[k] = drawn[k], None
        if d is not None:
            rings = d.rings if origin == (0.0, 0.0) else [ring + origin for ring in d.rings]
            yield Shape(d.kind, ids[d.name], rings, d.radius)


def moved(feature: dict[str, Any], by: tuple[float, float]) -> dict[str, Any]:
    """A GeoJSON feature moved by (y, x)."""
    if by == (0.0, 0.0):
        return feature

    def shift(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: shift(v) if k in ("coordinates", "geometries") else v for k, v in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], (int, float)):
            return [value[0] + by[1], value[1] + by[0], *value[2:]]
        return [shift(item) for item in value] if isinstance(value, list) else value

    return {**feature, "geometry": shift(feature["geometry"])}


def _report(name: str, document: Document, others: int) -> None:
    notes = [f"{n} {reason}" for reason, n in sorted(document.left_out.items())]
    if document.errors:
        notes.append(f"{len(document.errors)} that cannot be used ({document.errors[0]})")
    parts = [f"objects left out: {'; '.join(notes)}"] if notes else []
    if others:
        parts.append(f"{others} objects without a class of their own are kept but label nothing")
    if parts:
        text = f"{name or 'annotations'}: {'; '.join(parts)}."
        logger.info("%s", text)
        warnings.warn(text, AnnotationWarning, stacklevel=4)
