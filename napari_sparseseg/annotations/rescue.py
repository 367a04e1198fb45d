"""Annotations whose labels are drawn again: rescued from a damaged file, or under other class ids."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.annotations import Annotations
from napari_sparseseg.annotations.editing import draw_brush, fill_polygon
from napari_sparseseg.annotations.merging import merged_trees
from napari_sparseseg.annotations.packing import CHUNK, unpack
from napari_sparseseg.annotations.pyramid import MAX_SIDE
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.raster import Polygon
from napari_sparseseg.annotations.sqlite_file import DamagedFileError, connect, survey
from napari_sparseseg.annotations.stored import StoredAnnotations
from napari_sparseseg.config import PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError, SparseSegError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from napari_sparseseg.annotations.pyramid import Key
    from napari_sparseseg.annotations.strokes import Stroke


def rescue(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> tuple[Annotations, str]:
    """Annotations with what can be recovered from a damaged file, and a sentence about it; the file is not changed.

    Strokes are drawn again from their outlines and overwritten with the label chunks that survived: labels are exact
    where chunks survived and redrawn elsewhere. A bucket fill or label image whose chunks are lost is lost.

    Parameters
    ----------
    path
        An annotation file.
    shape
        Slide (H, W), needed only where the file has lost it.

    Raises
    ------
    AnnotationError
        Where nothing can be recovered.
    """
    try:
        opened = connect(Path(path))
    except DamagedFileError as error:
        raise AnnotationError(f"nothing can be rescued from {path}: {error.reason}.") from error
    with closing(opened) as connection:
        strokes, chunks, lost = survey(connection)
        shape = _shape(connection) or shape
        classes = _classes(connection, {stroke.class_id for stroke in strokes} - {0})
    if shape is None or not (strokes or chunks):
        raise AnnotationError(
            f"nothing can be rescued from {path}: "
            + ("it holds no strokes that can be read." if shape else "give the shape of its slide.")
        )
    trees = LabelQuadtree(shape), LabelQuadtree(shape)
    for tree in trees:
        tree.begin()
    for stroke in strokes:
        _redraw(trees, stroke)
    for tree in trees:
        tree.commit()
        tree.begin()
    for layer, (level, key), data in sorted(chunks, key=lambda chunk: -chunk[1][0]):
        _overlay(trees[layer], level, key, data)
    for tree in trees:
        tree.commit()
    text = f"{len(strokes)} strokes and {len(chunks)} label chunks were read, {lost} were lost."
    return _assembled(shape, classes, len(strokes), strokes, trees), text


def renumbered(annotations: Annotations, ids: Mapping[int, int], classes: Iterable[ClassDef]) -> Annotations:
    """Annotations with the labels, strokes and dense regions of `annotations`, but with other class ids.

    Parameters
    ----------
    annotations
        Not changed.
    ids
        New id by old id; ids that are not in it stay.
    classes
        The new class table.
    """
    snapshot = annotations.snapshot()
    table = np.arange(256, dtype=np.uint8)
    for old, new in ids.items():
        table[old] = new
    drawn = sorted((*snapshot.strokes, *snapshot.dense_regions), key=lambda stroke: stroke.id)
    strokes = [replace(stroke, class_id=int(table[stroke.class_id])) for stroke in drawn]
    trees = LabelQuadtree(snapshot.shape), LabelQuadtree(snapshot.shape)
    for tree, pyramid in zip(trees, (snapshot.scribbles, snapshot.dense), strict=True):
        tree.begin()
        # Painting again rather than renaming labels: a coarse pixel has the largest id below it, which may change.
        for level, key, packed in pyramid.leaves():
            chunk = table[unpack(packed)]
            for label in np.unique(chunk[chunk > 0]).tolist():
                tree.paint_mask(level, key[0] * CHUNK, key[1] * CHUNK, chunk == label, label, live=False)
        tree.commit()
    out = _assembled(snapshot.shape, make_classes(classes), snapshot.version, strokes, trees)
    out.set_others(annotations.others)
    return out


def merged(base: Annotations, other: Annotations) -> Annotations:
    """Annotations with the labels of `base` and over them those of `other`; both have the same class ids.

    Raises
    ------
    AnnotationError
        Where they were drawn on slides of different sizes.
    """
    if base.shape != other.shape:
        raise AnnotationError(f"annotations of a slide of {other.shape} pixels do not fit one of {base.shape}.")
    snapshots = base.snapshot(), other.snapshot()
    trees = merged_trees(*snapshots, shape=base.shape)
    drawn = [
        s for snapshot in snapshots for s in sorted((*snapshot.strokes, *snapshot.dense_regions), key=lambda s: s.id)
    ]
    strokes = [replace(stroke, id=number) for number, stroke in enumerate(drawn, 1)]
    classes = {c.id: c for c in (*other.classes, *base.classes)}
    out = _assembled(base.shape, tuple(classes.values()), sum(s.version for s in snapshots), strokes, trees)
    out.set_others((*base.others, *other.others))
    return out


def _assembled(
    shape: tuple[int, int],
    classes: tuple[ClassDef, ...],
    version: int,
    strokes: list[Stroke],
    trees: tuple[LabelQuadtree, LabelQuadtree],
) -> Annotations:
    next_id = max((stroke.id for stroke in strokes), default=0) + 1
    chunks = trees[0].packed(), trees[1].packed()
    return Annotations.from_stored(
        StoredAnnotations(shape, classes, version, uuid.uuid4().hex, next_id, strokes, chunks)
    )


def _shape(connection: sqlite3.Connection) -> tuple[int, int] | None:
    try:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = 'shape'").fetchone()
        height, width = (int(side) for side in json.loads(value))
        return (height, width) if 1 <= min(height, width) <= max(height, width) <= MAX_SIDE else None
    except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError):
        return None


def _classes(connection: sqlite3.Connection, used: Iterable[int]) -> tuple[ClassDef, ...]:
    """The class table; classes that were lost are named after their ids."""
    try:
        rows = connection.execute("SELECT id, name, colour FROM classes ORDER BY position").fetchall()
        table = list(make_classes([ClassDef(*row) for row in rows]))
    except (sqlite3.Error, TypeError, SparseSegError):
        table = []
    known = {c.id for c in table}
    table += [ClassDef(i, f"class {i}", PALETTE[(i - 1) % len(PALETTE)]) for i in sorted(used) if i not in known]
    return tuple(table)


def _redraw(trees: tuple[LabelQuadtree, LabelQuadtree], stroke: Stroke) -> None:
    if stroke.kind in ("polygon", "dense"):
        fill_polygon(trees[stroke.kind == "dense"], Polygon(stroke.parts()), stroke.class_id)
    elif stroke.kind in ("brush", "erase"):
        draw_brush(trees[0], stroke.parts(), stroke.radius, stroke.class_id)


def _overlay(tree: LabelQuadtree, level: int, key: Key, data: bytes) -> None:
    """Write a chunk where it differs from the tree: it must not hide redrawn finer chunks that agree with it."""
    y, x = key[0] * CHUNK, key[1] * CHUNK
    chunk = unpack(data)
    wrong = tree.read(level, y, y + CHUNK, x, x + CHUNK) != chunk
    for label in np.unique(chunk[wrong]).tolist():
        tree.paint_mask(level, y, x, wrong & (chunk == label), label)
