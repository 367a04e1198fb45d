"""Other annotations of the same slide into these: over, under or instead of what is here, as one edit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_sparseseg.annotations.document import Edit
from napari_sparseseg.annotations.packing import CHUNK, unpack
from napari_sparseseg.annotations.quadtree import Change, LabelQuadtree
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from napari_sparseseg.annotations.document import AnnotationDocument
    from napari_sparseseg.annotations.snapshot import Snapshot

Conflict = Literal["over", "under", "replace"]
"""What others' labels do to those that are here: cover them, give way to them, or take their place."""


def take_over(document: AnnotationDocument, other: AnnotationDocument, conflict: Conflict) -> Edit | None:
    """Add all that is in another document, with the same class ids, to this one.

    Label chunks are merged as they are: drawing hundreds of thousands of objects again would take minutes. Scribbles
    and dense regions are merged apart; a scribble is above a dense region, whoever drew it.

    Raises
    ------
    AnnotationError
        Where the other slide has another size.
    """
    if document.shape != other.shape:
        raise AnnotationError(f"annotations of a slide of {other.shape} pixels do not fit one of {document.shape}.")
    with document.lock, other.lock:
        mine, theirs = document.snapshot(), other.snapshot()
        if conflict == "replace" or not (mine.strokes or mine.dense_regions or document.scribbles.nonzero_counts()):
            trees = other.scribbles, other.dense
        else:
            trees = merged_trees(*((mine, theirs) if conflict == "over" else (theirs, mine)), shape=document.shape)
        removed = (*mine.strokes, *mine.dense_regions) if conflict == "replace" else ()
        pairs = tuple(zip((document.scribbles, document.dense), trees, strict=True))
        scribbles, dense = (_taken(*pair) for pair in pairs)
        drawn = sorted((*theirs.strokes, *theirs.dense_regions), key=lambda stroke: stroke.id)
        strokes = tuple(replace(stroke, id=document.take_id()) for stroke in drawn)
        if not strokes and not removed and scribbles is None and dense is None:
            return None
        for (tree, _), change in zip(pairs, (scribbles, dense), strict=True):
            if change is not None:
                tree.apply(change)
        return document.record(Edit(Box(0, 0, *document.shape), scribbles, dense, strokes, tuple(removed)))


def merged_trees(*snapshots: Snapshot, shape: tuple[int, int]) -> tuple[LabelQuadtree, LabelQuadtree]:
    """Scribbles and dense regions of several annotations of one slide, the later ones over the earlier ones."""
    trees = LabelQuadtree(shape), LabelQuadtree(shape)
    for tree, layers in zip(trees, zip(*((s.scribbles, s.dense) for s in snapshots), strict=True), strict=True):
        tree.begin()
        for pyramid in layers:
            for level, key, packed in pyramid.leaves():
                chunk = unpack(packed)
                for label in np.unique(chunk[chunk > 0]).tolist():
                    tree.paint_mask(level, key[0] * CHUNK, key[1] * CHUNK, chunk == label, label, live=False)
        tree.commit()
    return trees


def _taken(mine: LabelQuadtree, theirs: LabelQuadtree) -> Change | None:
    """The change that makes a tree hold what another does; None where it does already."""
    before, after = mine.packed(), theirs.packed()
    chunks = {at: (before.get(at), after.get(at)) for at in {**before, **after} if before.get(at) != after.get(at)}
    return Change(chunks, theirs.counts() - mine.counts()) if chunks else None
