"""What can be saved of a damaged annotation file."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.annotations import Annotations
from napari_sparseseg.annotations.drawing import fill_rings, stamp
from napari_sparseseg.annotations.packing import CHUNK, unpack
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.sqlite_file import Contents, DamagedFileError, connect, survey
from napari_sparseseg.config import PALETTE, ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError, SparseSegError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from napari_sparseseg.annotations.pyramid import Key
    from napari_sparseseg.annotations.strokes import Stroke


def rescue(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> tuple[Annotations, str]:
    """Annotations with what can be saved of a damaged file, and a sentence about it; the file is not changed.

    Strokes are drawn again from their outlines, and the label chunks that survived are laid over them: exact wherever
    the labels survived, redrawn elsewhere. A bucket fill or label image whose chunks are lost is lost.

    Parameters
    ----------
    path
        An annotation file.
    shape
        Slide (H, W), needed only where the file has lost it.

    Raises
    ------
    AnnotationError
        Where nothing can be saved.
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
    contents = Contents(shape, classes, len(strokes), uuid.uuid4().hex, max((s.id for s in strokes), default=0) + 1)
    contents.strokes.extend(strokes)
    for tree, packed in zip(trees, contents.chunks, strict=True):
        tree.commit()
        packed.update(tree.packed())
    out = Annotations(shape, classes)
    out.adopt(contents)
    return out, f"{len(strokes)} strokes and {len(chunks)} label chunks were read, {lost} were lost."


def _shape(connection: sqlite3.Connection) -> tuple[int, int] | None:
    try:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = 'shape'").fetchone()
        height, width = json.loads(value)
        return int(height), int(width)
    except (sqlite3.Error, ValueError, TypeError, RecursionError):
        return None


def _classes(connection: sqlite3.Connection, used: Iterable[int]) -> tuple[ClassDef, ...]:
    """The class table; classes that it has lost get names from their ids."""
    try:
        rows = connection.execute("SELECT id, name, colour FROM classes ORDER BY position").fetchall()
        table = list(make_classes([ClassDef(*row) for row in rows]))
    except (sqlite3.Error, TypeError, SparseSegError):
        table = []
    known = {c.id for c in table}
    table += [ClassDef(i, f"class {i}", PALETTE[(i - 1) % len(PALETTE)]) for i in sorted(used) if i not in known]
    return tuple(table)


def _redraw(trees: tuple[LabelQuadtree, LabelQuadtree], stroke: Stroke) -> None:
    parts = stroke.parts()
    if stroke.kind in ("polygon", "dense"):
        fill_rings(trees[stroke.kind == "dense"], parts, stroke.class_id)
    elif stroke.kind in ("brush", "erase"):
        for points in (part.tolist() for part in parts):
            for p, q in zip(points, points[1:] or points, strict=False):
                stamp(trees[0], (p, q), stroke.radius, stroke.class_id)


def _overlay(tree: LabelQuadtree, level: int, key: Key, data: bytes) -> None:
    """Write a chunk where it is not what the tree has: a coarse chunk knows less than finer ones redrawn below it."""
    y, x = key[0] * CHUNK, key[1] * CHUNK
    chunk = unpack(data)
    wrong = tree.read(level, y, y + CHUNK, x, x + CHUNK) != chunk
    for label in np.unique(chunk[wrong]).tolist():
        tree.paint_mask(level, y, x, wrong & (chunk == label), label)
