"""Annotations of one version, frozen, for training and export while the user continues to draw."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, EMPTY, cached_for_chunks, pack, unpack
from napari_sparseseg.annotations.pyramid import children, weighed_counts
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Labels
    from napari_sparseseg.annotations.pyramid import Key, PackedPyramid
    from napari_sparseseg.annotations.quadtree import LabelQuadtree
    from napari_sparseseg.annotations.strokes import DenseRegion, Stroke
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Frame


class Snapshot:
    """One version of `Annotations`, immutable; any number of threads may read it.

    Attributes
    ----------
    version
        Of the annotations it was taken from.
    shape
        Slide (H, W) in level-0 pixels.
    classes
        The class table then.
    strokes
        In the order of drawing, without what was undone and without dense regions.
    dense_regions
        Regions declared exhaustively labelled, in the order of drawing.
    scribbles, dense
        Label pyramids of the strokes and of the dense regions.
    """

    def __init__(
        self,
        version: int,
        classes: tuple[ClassDef, ...],
        pyramids: tuple[PackedPyramid, PackedPyramid],
        strokes: tuple[Stroke, ...],
        dense_regions: tuple[DenseRegion, ...],
        scribble_counts: NDArray[np.int64],
    ) -> None:
        self.version, self.classes = version, classes
        self.scribbles, self.dense = pyramids
        self.shape = self.scribbles.shape
        self.strokes, self.dense_regions = strokes, dense_regions
        self._scribble_counts = scribble_counts

    def read(self, box: Box | tuple[int, int, int, int], level: int = 0, *, scribbles_only: bool = False) -> Labels:
        """Labels (h, w) uint8 that cover a level-0 box, at `level` (2**level level-0 pixels per pixel).

        Scribbles where there are any, else the class of a dense region, else 0. A coarse pixel has the largest class id
        of the scribbles it covers, or else of the dense regions.
        """
        dense = None if scribbles_only or not self.dense_regions else self.dense
        return read_labels(self.scribbles, dense, box, level)

    def read_region(self, region: Box, frame: Frame) -> Labels:
        """Labels (region.height, region.width) uint8 of the level-0 pixel under the centre of each frame pixel."""
        rows, columns = _centres(region, frame)
        labels = self.scribbles.sample(rows, columns)
        if self.dense_regions:
            rest = self.dense.sample(rows, columns)
            np.copyto(labels, rest, where=labels == 0)
        return labels

    def occupied(self, frame: Frame, size: int) -> list[Box]:
        """Cells of the frame's absolute grid of `size` pixels that hold a labelled level-0 pixel, row by row."""
        step = (frame.downsample[0] * size, frame.downsample[1] * size)
        cells: set[Key] = set()
        for pyramid in (self.scribbles, self.dense):
            for level, key, packed in pyramid.leaves():
                cells.update(_cells(packed, level, key, step))
        height, width = frame.shape(self.shape)
        return [Box(i * size, j * size, size, size) for i, j in sorted(cells) if i * size < height and j * size < width]

    def counts(self) -> dict[int, int]:
        """Labelled level-0 pixels of every class, zeros too, as `read` shows them: scribbles hide dense regions."""
        return {c.id: int(self._counts[c.id]) for c in self.classes}

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        counts = self._scribble_counts
        return counts + _uncovered_counts(self.scribbles, self.dense) if self.dense_regions else counts


def read_labels(
    scribbles: LabelQuadtree | PackedPyramid,
    dense: LabelQuadtree | PackedPyramid | None,
    box: Box | tuple[int, int, int, int],
    level: int,
) -> Labels:
    """Labels that cover a level-0 box, in pixels of `level`; without dense regions where `dense` is None."""
    y, x, height, width = box
    bounds = (y >> level, -(-(y + height) >> level), x >> level, -(-(x + width) >> level))
    labels = scribbles.read(level, *bounds)
    if dense is not None:
        np.copyto(labels, dense.read(level, *bounds), where=labels == 0)
    return labels


def _uncovered_counts(scribbles: PackedPyramid, dense: PackedPyramid) -> NDArray[np.int64]:
    """Level-0 pixels (256,) per class of the dense regions that no scribble covers."""
    total = np.zeros(256, np.int64)
    top = dense.top_level
    pending = [(top, key) for key in dense.levels[top]]
    while pending:
        level, key = pending.pop()
        below = _packed_at(dense, level, key)
        if below == EMPTY:
            continue
        finer = level > 0 and any(c in p.levels[level - 1] for p in (dense, scribbles) for c in children(key))
        if finer:
            pending.extend((level - 1, child) for child in children(key))
            continue
        visible = _uncovered(_packed_at(scribbles, level, key), below)
        for label, n in weighed_counts(visible, dense.shape, level, key):
            total[label] += n
    return total


def _packed_at(pyramid: PackedPyramid, level: int, key: Key) -> bytes:
    """A chunk as it reads, whether or not it exists."""
    packed = pyramid.levels[level].get(key)
    if packed is not None:
        return packed
    y, x = key[0] * CHUNK, key[1] * CHUNK
    return pack(pyramid.read(level, y, y + CHUNK, x, x + CHUNK))


@cached_for_chunks(8 << 20)
def _uncovered(scribbles: bytes, dense: bytes) -> bytes:
    """The packed dense chunk with 0 under the scribbles."""
    if scribbles == EMPTY:
        return dense
    return pack(np.where(unpack(scribbles) == 0, unpack(dense), np.uint8(0)))


def _centres(region: Box, frame: Frame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Level-0 rows and columns under the centres of a region's pixels."""
    dy, dx = frame.downsample
    rows = np.floor((np.arange(region.y, region.y1) + 0.5) * dy).astype(np.int64)
    columns = np.floor((np.arange(region.x, region.x1) + 0.5) * dx).astype(np.int64)
    return rows, columns


def _cells(packed: bytes, level: int, key: Key, step: tuple[float, float]) -> Iterable[Key]:
    """Cells of `step` level-0 pixels that hold a label of the chunk."""
    spans, edges = [], []
    for k, size in zip(key, step, strict=True):
        start, stop = k * CHUNK << level, (k + 1) * CHUNK << level
        # A level-0 pixel belongs to the cells that its area [n, n + 1) overlaps.
        cells = np.arange(math.floor(start / size + 1e-9), math.ceil(stop / size - 1e-9))
        first = np.clip(np.floor(cells * size + 1e-6).astype(np.int64), start, stop) - start
        last = np.clip(np.ceil((cells + 1) * size - 1e-6).astype(np.int64), start, stop) - start
        edges.append((tuple((first >> level).tolist()), tuple((-(-last >> level)).tolist())))
        spans.append(cells)
    if len(spans[0]) == len(spans[1]) == 1:
        return [(int(spans[0][0]), int(spans[1][0]))]
    return [(int(spans[0][i]), int(spans[1][j])) for i, j in _labelled(packed, edges[0], edges[1])]


Edges = tuple[tuple[int, ...], tuple[int, ...]]


@cached_for_chunks(16 << 20)
def _labelled(packed: bytes, rows: Edges, columns: Edges) -> tuple[Key, ...]:
    """Which blocks of a chunk, between (first, last) rows and columns, hold a label."""
    area = np.zeros((CHUNK + 1, CHUNK + 1), np.int32)
    np.cumsum(np.cumsum(unpack(packed) > 0, axis=0, dtype=np.int32), axis=1, out=area[1:, 1:])
    (a, b), (c, d) = (np.array(rows), np.array(columns))
    found = area[np.ix_(b, d)] - area[np.ix_(a, d)] - area[np.ix_(b, c)] + area[np.ix_(a, c)]
    return tuple((int(i), int(j)) for i, j in np.argwhere(found > 0))
