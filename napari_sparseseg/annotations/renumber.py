"""The same annotations under other class ids."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.annotations import Annotations
from napari_sparseseg.annotations.packing import CHUNK, unpack
from napari_sparseseg.annotations.quadtree import LabelQuadtree
from napari_sparseseg.annotations.sqlite_file import Contents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from napari_sparseseg.config import ClassDef


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
    strokes = [
        replace(stroke, class_id=int(table[stroke.class_id]))
        for stroke in sorted((*snapshot.strokes, *snapshot.dense_regions), key=lambda stroke: stroke.id)
    ]
    out = Annotations(snapshot.shape, classes)
    next_id = max((stroke.id for stroke in strokes), default=0) + 1
    contents = Contents(snapshot.shape, out.classes, snapshot.version, uuid.uuid4().hex, next_id, strokes=strokes)
    for pyramid, chunks in zip((snapshot.scribbles, snapshot.dense), contents.chunks, strict=True):
        tree = LabelQuadtree(snapshot.shape)
        tree.begin()
        # Drawn again, not only renamed: coarser levels show the largest id, which may be another one now.
        for level, key, packed in pyramid.leaves():
            chunk = table[unpack(packed)]
            for label in np.unique(chunk[chunk > 0]).tolist():
                tree.paint_mask(level, key[0] * CHUNK, key[1] * CHUNK, chunk == label, label, live=False)
        tree.commit()
        chunks.update(tree.packed())
    out.adopt(contents)
    return out
