"""Strokes and dense regions that were drawn before: removed, or given another class."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.document import Edit
from napari_sparseseg.annotations.editing import clear_regions, fill_polygon, stamp
from napari_sparseseg.annotations.raster import Polygon
from napari_sparseseg.config import MAX_CLASS_ID
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from napari_sparseseg.annotations.document import AnnotationDocument
    from napari_sparseseg.annotations.quadtree import LabelQuadtree
    from napari_sparseseg.annotations.strokes import Stroke

ROUNDING = 0.02
"""Level-0 pixels: outlines are stored in single precision, so that a pixel at the rim may fall just outside."""
_AROUND = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


def change_strokes(document: AnnotationDocument, ids: Iterable[int], class_id: int) -> Edit | None:
    """Give strokes and dense regions another class, or remove them with `class_id` 0, as one edit.

    A stroke's pixels are those within its outline that have its class and lie in no other stroke of this class. What
    has no outline (bucket, snap brush, label image) has the pixels of its class within its box, but for those in the
    smaller box of another one. What a removed stroke had covered does not appear again; what lies below a dense region
    does.

    Raises
    ------
    AnnotationError
        Where there is no such stroke or class, or a stroke is being drawn.
    """
    document.require_class(class_id, erase=True)
    with document.lock:
        drawn = {**document.strokes, **document.regions}
        wanted = [_found(drawn, number) for number in dict.fromkeys(ids)]
        strokes = [s for s in wanted if s.class_id != class_id]
        if not strokes:
            return None
        after = [replace(s, class_id=class_id) for s in strokes] if class_id else []
        document.scribbles.begin()
        document.dense.begin()
        try:
            _repaint(document, [s for s in strokes if s.kind != "dense"], class_id)
            regions = [s for s in strokes if s.kind == "dense"]
            gone = {s.id for s in regions}
            left = [r for r in document.regions.values() if r.id not in gone]
            left = sorted((*left, *(s for s in after if s.kind == "dense")), key=lambda s: s.id)
            clear_regions(document.dense, regions, left)
        except BaseException:
            document.scribbles.abort()
            document.dense.abort()
            raise
        changes = document.scribbles.commit(), document.dense.commit()
        box = reduce(Box.union, (s.box for s in strokes))
        return document.record(
            Edit(box, *changes, added=tuple(after), removed=tuple(strokes), what=_title(document, strokes, class_id))
        )


def _found(drawn: dict[int, Stroke], number: int) -> Stroke:
    stroke = drawn.get(number)
    if stroke is None or not stroke.class_id:
        raise AnnotationError(f"there is no stroke or dense region {number} that labels anything.")
    return stroke


def _title(document: AnnotationDocument, strokes: Sequence[Stroke], class_id: int) -> str:
    what = Edit(strokes[0].box, added=tuple(strokes)).title
    name = next((c.name for c in document.classes if c.id == class_id), "")
    return f"{what} to {name}" if class_id else f"removal of {what}"


def _repaint(document: AnnotationDocument, strokes: Sequence[Stroke], class_id: int) -> None:
    """Write `class_id` where strokes have their label still, in the open scribble tree.

    By way of a label that nothing has: what is written with it is given back to the other strokes, pixel by pixel.
    """
    tree = document.scribbles
    spare = _spare(document) if strokes else 0
    chosen = {s.id for s in strokes}
    for old in sorted({s.class_id for s in strokes}):
        mine = [s for s in strokes if s.class_id == old]
        others = [s for s in document.strokes.values() if s.class_id == old and s.id not in chosen]
        for stroke in mine:
            _cover(tree, stroke, spare, old, stroke.box, ROUNDING)
        for stroke in mine:
            for other in others:
                if _owns(other, stroke):
                    _cover(tree, other, old, spare, stroke.box)
        for stroke in mine:
            _cover(tree, stroke, class_id, spare, stroke.box, ROUNDING)


def _spare(document: AnnotationDocument) -> int:
    used = {c.id for c in document.classes} | set(document.scribbles.nonzero_counts())
    free = next((i for i in range(MAX_CLASS_ID, 0, -1) if i not in used), 0)
    if not free:
        raise AnnotationError("with all 255 classes in use no stroke can be changed; remove a class first.")
    return free


def _owns(other: Stroke, stroke: Stroke) -> bool:
    """Whether pixels that lie in both, of one class, stay with `other` when `stroke` goes."""
    if not other.box.intersection(stroke.box).area:
        return False
    if other.kind != "fill":
        return True
    return stroke.kind == "fill" and (other.box.area, -other.id) < (stroke.box.area, -stroke.id)


def _cover(tree: LabelQuadtree, stroke: Stroke, label: int, keep: int, within: Box, slack: float = 0.0) -> None:
    """Write a label over what a stroke covers, at least within a box, where there is the label `keep`."""
    if stroke.kind == "brush":
        reach = stroke.radius + 1
        for part in stroke.parts():
            points = part.tolist()
            for p, q in zip(points, points[1:] or points, strict=False):
                low, high = np.minimum(p, q) - reach, np.maximum(p, q) + reach
                if (low <= (within.y1, within.x1)).all() and (high >= (within.y, within.x)).all():
                    stamp(tree, (p, q), stroke.radius, label, keep, slack=slack)
        return
    if stroke.kind == "fill":
        polygons = [Polygon(stroke.parts())]  # the corners of its box
    else:
        shifts = slack * np.array(_AROUND) if slack else np.zeros((1, 2))
        polygons = [Polygon([part + shift for part in stroke.parts()]) for shift in shifts]
    for polygon in polygons:
        fill_polygon(tree, polygon, label, keep)
