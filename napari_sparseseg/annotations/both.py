"""Scribbles and dense regions seen together: a scribble where there is one, else the rest class."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, EMPTY, pack, unpack
from napari_sparseseg.annotations.pyramid import children, weighed_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Labels
    from napari_sparseseg.annotations.pyramid import FrozenPyramid, Key, LabelPyramid
    from napari_sparseseg.geometry import Box


def read_both(
    scribbles: LabelPyramid, dense: LabelPyramid | None, box: Box | tuple[int, int, int, int], level: int
) -> Labels:
    """Labels that cover a level-0 box, in pixels of `level`; `dense` None leaves the dense regions out."""
    y, x, height, width = box
    bounds = (y >> level, -(-(y + height) >> level), x >> level, -(-(x + width) >> level))
    labels = scribbles.read(level, *bounds)
    if dense is not None:
        np.copyto(labels, dense.read(level, *bounds), where=labels == 0)
    return labels


def dense_only_counts(scribbles: FrozenPyramid, dense: FrozenPyramid) -> NDArray[np.int64]:
    """Level-0 pixels (256,) of the rest classes that no scribble covers."""
    total = np.zeros(256, np.int64)
    top = dense.top_level
    pending = [(top, key) for key in dense.levels[top]]
    while pending:
        level, key = pending.pop()
        rest = _packed_at(dense, level, key)
        if rest == EMPTY:
            continue
        finer = level > 0 and any(c in p.levels[level - 1] for p in (dense, scribbles) for c in children(key))
        if finer:
            pending.extend((level - 1, child) for child in children(key))
            continue
        visible = _uncovered(_packed_at(scribbles, level, key), rest)
        for label, n in weighed_counts(visible, dense.shape, level, key):
            total[label] += n
    return total


def _packed_at(pyramid: FrozenPyramid, level: int, key: Key) -> bytes:
    """A chunk as it reads, whether or not it exists."""
    packed = pyramid.levels[level].get(key)
    if packed is not None:
        return packed
    y, x = key[0] * CHUNK, key[1] * CHUNK
    return pack(pyramid.read(level, y, y + CHUNK, x, x + CHUNK))


@lru_cache(maxsize=16384)
def _uncovered(scribbles: bytes, rest: bytes) -> bytes:
    """The packed rest classes with 0 under the scribbles."""
    if scribbles == EMPTY:
        return rest
    return pack(np.where(unpack(scribbles) == 0, unpack(rest), np.uint8(0)))
