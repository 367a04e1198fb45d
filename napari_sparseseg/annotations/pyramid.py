"""Reading a sparse label pyramid.

A pixel of level k covers 2**k x 2**k level-0 pixels. Every level is cut into chunks of 256 x 256 pixels; only chunks
that add information exist. Two invariants hold for a committed pyramid:

1. where a chunk exists, so do all its ancestors (the coarsest level always reads as existing);
2. a chunk that does not exist reads as its nearest ancestor, enlarged; a coarser pixel with finer chunks below it is
   the maximum over them, so that thin scribbles stay visible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, EMPTY, HALF, enlarge, label_counts, unpack, without_quadrants
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Labels

    Key = tuple[int, int]
    Chunks = dict[Key, bytes]

COARSEST = 1024
MAX_SIDE = 1 << 26
ZEROS = np.zeros((CHUNK, CHUNK), np.uint8)
ZEROS.flags.writeable = False


class LabelPyramid(ABC):
    """Geometry and reading of a sparse label pyramid.

    Parameters
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    coarsest
        The coarsest level has at most this many pixels per side.

    Attributes
    ----------
    shapes
        (h, w) of every level, finest first.
    """

    def __init__(self, shape: tuple[int, int], coarsest: int = COARSEST) -> None:
        height, width = (int(n) for n in shape)
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise AnnotationError(f"annotations need a slide shape of 1 to {MAX_SIDE} pixels a side, not {shape}.")
        self.shape, self.coarsest = (height, width), coarsest
        self.top_level = 1  # napari cannot show a pyramid of one level
        while -(-max(self.shape) // (1 << self.top_level)) > coarsest:
            self.top_level += 1
        # Level 0 is padded so that shapes shrink by exactly two: napari places a level by the ratio of the shapes.
        step = 1 << self.top_level
        h, w = (-(-n // step) * step for n in self.shape)
        self.shapes = tuple((h >> k, w >> k) for k in range(self.top_level + 1))

    @abstractmethod
    def _chunk(self, level: int, key: Key) -> Labels | None:
        """The (256, 256) chunk, read-only; None where it does not exist. The coarsest level always exists."""

    def valid(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level that overlap the slide; the padding beyond is always 0."""
        return -(-self.shape[0] >> level), -(-self.shape[1] >> level)

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> Labels:
        """Labels (y1 - y0, x1 - x0) uint8 of a box in pixels of `level`; 0 outside the slide."""
        out = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), np.uint8)
        height, width = self.valid(level)
        area = Box(y0, x0, y1 - y0, x1 - x0).intersection(Box(0, 0, height, width))
        for key, part in chunk_parts(area):
            piece = out[part.y - y0 : part.y1 - y0, part.x - x0 : part.x1 - x0]
            chunk = self._chunk(level, key)
            if chunk is None:
                self._read_ancestor(level, part, piece)
            else:
                piece[...] = cut(chunk, key, part)
        return out

    def _read_ancestor(self, level: int, part: Box, out: Labels) -> None:
        """Write the enlarged values of the nearest ancestor of `part`, which lies in one chunk of `level`."""
        for k in range(level + 1, self.top_level + 1):
            shift = k - level
            y, x = part.y >> shift, part.x >> shift
            key = (y // CHUNK, x // CHUNK)
            chunk = self._chunk(k, key)
            if chunk is None:
                continue
            source = Box(y, x, ((part.y1 - 1) >> shift) + 1 - y, ((part.x1 - 1) >> shift) + 1 - x)
            coarse = cut(chunk, key, source)
            if coarse.any():
                dy, dx = part.y - (y << shift), part.x - (x << shift)
                out[...] = enlarge(coarse, shift)[dy : dy + part.height, dx : dx + part.width]
            return

    def sample(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Labels:
        """Labels (len(rows), len(columns)) of the level-0 pixels at those sorted rows and columns; 0 outside."""
        out = np.zeros((len(rows), len(columns)), np.uint8)
        r0, r1 = np.searchsorted(rows, (0, self.shape[0]))
        c0, c1 = np.searchsorted(columns, (0, self.shape[1]))
        if r0 == r1 or c0 == c1:
            return out
        inside, ys, xs = out[r0:r1, c0:c1], rows[r0:r1], columns[c0:c1]
        span = CHUNK << self.top_level
        wanted = [
            (i, j)
            for i in range(int(ys[0]) // span, int(ys[-1]) // span + 1)
            for j in range(int(xs[0]) // span, int(xs[-1]) // span + 1)
        ]
        # Coarse to fine: finer chunks overwrite what coarser ones have put there.
        for level in range(self.top_level, -1, -1):
            span = CHUNK << level
            found = []
            for i, j in wanted:
                a, b = np.searchsorted(ys, (i * span, (i + 1) * span))
                c, d = np.searchsorted(xs, (j * span, (j + 1) * span))
                chunk = self._chunk(level, (i, j)) if a < b and c < d else None
                if chunk is not None:
                    inside[a:b, c:d] = chunk[np.ix_((ys[a:b] >> level) % CHUNK, (xs[c:d] >> level) % CHUNK)]
                    found.append((i, j))
            wanted = [child for key in found for child in children(key)]
        return out


class PackedPyramid(LabelPyramid):
    """A pyramid of packed chunks; any number of threads may read it as long as nobody changes `levels`.

    Parameters
    ----------
    shape, coarsest
        As in `LabelPyramid`.
    levels
        Packed chunks by (row, column) for every level, finest first; not copied. None: an empty pyramid.
    """

    def __init__(
        self, shape: tuple[int, int], levels: Sequence[Chunks] | None = None, coarsest: int = COARSEST
    ) -> None:
        super().__init__(shape, coarsest)
        self.levels: tuple[Chunks, ...] = tuple(levels if levels is not None else ({} for _ in self.shapes))

    def copy(self) -> PackedPyramid:
        """A pyramid of the same chunks that stays as it is when this one changes."""
        return PackedPyramid(self.shape, [dict(chunks) for chunks in self.levels], self.coarsest)

    def leaves(self) -> Iterator[tuple[int, Key, bytes]]:
        """(level, key, packed chunk) of everything labelled; each level-0 pixel is in at most one of them."""
        for level, chunks in enumerate(self.levels):
            for key in chunks:
                packed = leaf_part(self.levels, level, key)
                if packed is not None and packed != EMPTY:
                    yield level, key, packed

    def _chunk(self, level: int, key: Key) -> Labels | None:
        packed = self.levels[level].get(key)
        if packed is None:
            return ZEROS if level == self.top_level else None
        return unpack(packed)


def chunk_parts(area: Box) -> Iterator[tuple[Key, Box]]:
    """The chunks that an area of a level touches, each with the part of the area that lies in it."""
    if area.area == 0:
        return
    for i in range(area.y // CHUNK, (area.y1 - 1) // CHUNK + 1):
        for j in range(area.x // CHUNK, (area.x1 - 1) // CHUNK + 1):
            yield (i, j), area.intersection(Box(i * CHUNK, j * CHUNK, CHUNK, CHUNK))


def cut(chunk: NDArray[Any], key: Key, part: Box) -> NDArray[Any]:
    """View of the pixels of `part`, a box of the level, in the chunk at `key`."""
    y, x = part.y - key[0] * CHUNK, part.x - key[1] * CHUNK
    return chunk[y : y + part.height, x : x + part.width]


def children(key: Key) -> tuple[Key, Key, Key, Key]:
    """The four chunks of the next finer level below a chunk."""
    i, j = 2 * key[0], 2 * key[1]
    return (i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)


def quadrant(child: Key) -> tuple[slice, slice]:
    """Where a chunk lies in its parent."""
    y, x = child[0] % 2 * HALF, child[1] % 2 * HALF
    return slice(y, y + HALF), slice(x, x + HALF)


def leaf_part(levels: Sequence[Chunks], level: int, key: Key) -> bytes | None:
    """The packed chunk with 0 wherever a finer chunk exists; None where nothing is left."""
    packed = levels[level].get(key)
    if packed is None or level == 0:
        return packed
    below = tuple(q for q, child in enumerate(children(key)) if child in levels[level - 1])
    if not below:
        return packed
    if len(below) == 4:
        return None
    chunk, left = unpack(packed), [child for child in children(key) if child not in levels[level - 1]]
    return without_quadrants(packed, below) if any(chunk[quadrant(child)].any() for child in left) else None


def leaf_counts(shape: tuple[int, int], levels: Sequence[Chunks], level: int, key: Key) -> Iterable[tuple[int, int]]:
    """(label, level-0 pixels) of the part of a chunk that no finer chunk covers."""
    packed = leaf_part(levels, level, key)
    if packed is None:
        return ()
    return weighed_counts(packed, shape, level, key)


def weighed_counts(packed: bytes, shape: tuple[int, int], level: int, key: Key) -> Iterable[tuple[int, int]]:
    """(label, level-0 pixels on the slide) of a packed chunk."""
    if level == 0:
        return label_counts(packed)
    if all((k + 1) * CHUNK << level <= n for k, n in zip(key, shape, strict=True)):
        return [(label, n << 2 * level) for label, n in label_counts(packed)]
    # Pixels of coarse levels extend beyond the edge of the slide.
    rows, columns = (
        np.clip(n - (np.arange(k * CHUNK, (k + 1) * CHUNK) << level), 0, 1 << level)
        for n, k in zip(shape, key, strict=True)
    )
    counts = np.bincount(unpack(packed).reshape(-1), weights=np.outer(rows, columns).reshape(-1))
    return [(int(k), int(counts[k])) for k in np.flatnonzero(counts) if k]
