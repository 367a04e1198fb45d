"""The editable sparse label quadtree: packed chunks, their label counts, and at most one open transaction."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, EMPTY, unpack
from napari_sparseseg.annotations.pyramid import COARSEST, PackedPyramid, leaf_counts
from napari_sparseseg.annotations.transaction import Transaction
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Keep, Labels
    from napari_sparseseg.annotations.pyramid import Key
    from napari_sparseseg.annotations.raster import PixelRuns
    from napari_sparseseg.geometry import Box

    Mask = NDArray[np.bool_]
    At = tuple[int, Key]

OPEN_CHUNKS = 512  # raw chunks of an open transaction: 32 MB


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction did.

    Attributes
    ----------
    chunks
        Packed chunks before and after by (level, key); None where there is none.
    counts
        Level-0 pixels added per label, (256,).
    """

    chunks: dict[At, tuple[bytes | None, bytes | None]]
    counts: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Memory of the packed chunks on both sides, with the overhead of Python objects."""
        return sum(200 + len(a or b"") + len(b or b"") for a, b in self.chunks.values())

    def inverse(self) -> Change:
        """The change that takes this one back."""
        return Change({at: (after, before) for at, (before, after) in self.chunks.items()}, -self.counts)


class LabelQuadtree:
    """Sparse uint8 label pyramid that can be painted at any level; thread-safe.

    Parameters
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    coarsest
        The coarsest level has at most this many pixels per side.
    open_chunks
        Raw chunks, of 64 KB each, that an open transaction may hold.

    Attributes
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    shapes
        (h, w) of every level, finest first.
    top_level
        Index of the coarsest level.
    top
        The coarsest level, (h, w) uint8; one array that is written in place.
    """

    def __init__(self, shape: tuple[int, int], *, coarsest: int = COARSEST, open_chunks: int = OPEN_CHUNKS) -> None:
        self._committed = PackedPyramid(shape, coarsest=coarsest)
        self.shape, self.shapes = self._committed.shape, self._committed.shapes
        self.top_level = self._committed.top_level
        self._open: Transaction | None = None
        self._open_chunks = open_chunks
        self._counts = np.zeros(256, np.int64)
        self._lock = threading.RLock()
        h, w = self.shapes[-1]
        self._top = np.zeros((-(-h // CHUNK) * CHUNK, -(-w // CHUNK) * CHUNK), np.uint8)
        self.top = self._top[:h, :w]  # written in place, because napari never reads the coarsest level again

    # ------------------------------------------------------------------ reading
    def valid(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level that overlap the slide."""
        return self._committed.valid(level)

    def levels(self) -> list[Any]:
        """The levels as array-likes for a multiscale layer, finest first: `LevelView`s and the array `top`."""
        return [LevelView(self, k) for k in range(self.top_level)] + [self.top]

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> Labels:
        """Labels (y1 - y0, x1 - x0) uint8 of a box in pixels of `level`, an open transaction included.

        During a transaction that preserves labels, levels coarser than the painted one may show a few pixels too many
        or too few where finer chunks exist; `commit` makes them exact.
        """
        with self._lock:
            return (self._open or self._committed).read(level, y0, y1, x0, x1)

    def freeze(self) -> PackedPyramid:
        """A copy of the committed state that never changes."""
        with self._lock:
            return self._committed.copy()

    def packed(self) -> dict[At, bytes]:
        """The committed chunks by (level, key), as a file stores them."""
        with self._lock:
            return {
                (level, key): data
                for level, chunks in enumerate(self._committed.levels)
                for key, data in chunks.items()
            }

    def counts(self) -> NDArray[np.int64]:
        """Committed level-0 pixels per label (256,); entry 0 is always 0."""
        with self._lock:
            return self._counts.copy()

    def nonzero_counts(self) -> dict[int, int]:
        """`counts` of the labels that occur."""
        counts = self.counts()
        return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}

    # ------------------------------------------------------------------ painting
    def begin(self) -> None:
        """Open a transaction.

        Raises
        ------
        AnnotationError
            If one is open already.
        """
        with self._lock:
            if self._open is not None:
                raise AnnotationError("a stroke is open already; commit or abort it first.")
            self._open = Transaction(self._committed, self._top, self._open_chunks)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open."""
        return self._open is not None

    def paint_mask(
        self, level: int, y0: int, x0: int, mask: Mask, label: int, keep: Keep = None, *, live: bool = True
    ) -> Box | None:
        """Write `label` where `mask` is true; a transaction must be open.

        Parameters
        ----------
        level
            `y0`, `x0` and the bool `mask` (h, w) are in pixels of this level.
        label
            0 to 255; 0 erases.
        keep
            Where given, only level-0 pixels that hold this label, or one of these, are written.
        live
            Whether coarser levels show it before `commit`.

        Returns
        -------
        Box
            Level-0 pixels that may have changed; None where the mask misses the slide.
        """
        with self._lock:
            return self._transaction().paint_mask(level, y0, x0, mask, label, keep, live=live)

    def paint_runs(self, runs: PixelRuns, labels: Labels) -> None:
        """Write runs of pixels into level-0 chunks, later ones over earlier ones; a transaction must be open.

        Parameters
        ----------
        runs
            The pixels.
        labels
            Of each run.
        """
        with self._lock:
            self._transaction().paint_runs(runs, labels)

    def replace_label(self, old: int, new: int) -> None:
        """Turn every pixel of label `old` into `new` in the open transaction."""
        with self._lock:
            self._transaction().replace_label(old, new)

    def commit(self) -> Change | None:
        """Make all levels exact and the transaction permanent; None where it changed nothing."""
        with self._lock:
            chunks = self._transaction().finish()
            self._open = None
            if not chunks:
                return None
            # Parents count differently once a finer chunk covers a part of them.
            where = set(chunks) | {(k + 1, (i // 2, j // 2)) for k, (i, j) in chunks if k < self.top_level}
            before = self._count(where)
            self._replace({at: after for at, (_, after) in chunks.items()})
            added = self._count(where) - before
            self._counts += added
            return Change(chunks, added)

    def abort(self) -> None:
        """Discard the open transaction."""
        with self._lock:
            self._transaction().abort()
            self._open = None

    def apply(self, change: Change) -> None:
        """Make a change again, or take one back with its `inverse`; changes are a stack, the newest comes first."""
        with self._lock:
            if self._open is not None:
                raise AnnotationError("a stroke is open; commit or abort it before undo or redo.")
            self._replace({at: after for at, (_, after) in change.chunks.items()})
            self._counts += change.counts

    def restore(self, chunks: Mapping[At, bytes], counts: Mapping[int, int] | None = None) -> None:
        """Fill an empty quadtree with the packed chunks, and the counts, of another of the same shape.

        Raises
        ------
        AnnotationError
            Where a chunk lies outside.
        """
        for level, (i, j) in chunks:
            h, w = self.shapes[level] if 0 <= level <= self.top_level else (0, 0)
            if not (0 <= i * CHUNK < h and 0 <= j * CHUNK < w):
                raise AnnotationError(f"label chunk {(level, i, j)} lies outside the slide; the file is damaged.")
        with self._lock:
            self._replace(chunks)
            if counts is None:
                self._counts += self._count(set(chunks))
            for label, n in (counts or {}).items():
                self._counts[label] = n

    def _transaction(self) -> Transaction:
        if self._open is None:
            raise AnnotationError("no stroke is open; begin one first.")
        return self._open

    def _count(self, where: set[At]) -> NDArray[np.int64]:
        total = np.zeros(256, np.int64)
        for level, key in where:
            for label, n in leaf_counts(self.shape, self._committed.levels, level, key):
                total[label] += n
        return total

    def _replace(self, chunks: Mapping[At, bytes | None]) -> None:
        for (level, key), packed in chunks.items():
            if packed is None:
                self._committed.levels[level].pop(key, None)
            else:
                self._committed.levels[level][key] = packed
            if level == self.top_level:
                y, x = key[0] * CHUNK, key[1] * CHUNK
                self._top[y : y + CHUNK, x : x + CHUNK] = unpack(packed or EMPTY)


class LevelView:
    """One level as the array-like that napari slices: dtype, shape, ndim, size, chunks and reading by index."""

    def __init__(self, tree: LabelQuadtree, level: int) -> None:
        self.tree, self.level = tree, level
        self.shape = tree.shapes[level]
        self.dtype = np.dtype(np.uint8)
        self.ndim = 2
        self.size = self.shape[0] * self.shape[1]
        self.chunks = (CHUNK, CHUNK)

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        bounds, squeeze = [], []
        for axis, (k, n) in enumerate(zip(index + (slice(None),) * (2 - len(index)), self.shape, strict=True)):
            if isinstance(k, slice):
                start, stop, step = k.indices(n)
                if step != 1:
                    raise IndexError(f"levels of annotations are read with step 1, not {step}.")
                bounds.append((start, max(start, stop)))
            else:
                k = int(k) + (n if k < 0 else 0)
                if not 0 <= k < n:
                    raise IndexError(f"index {k} is outside axis {axis} of {n} pixels.")
                bounds.append((k, k + 1))
                squeeze.append(axis)
        return self.tree.read(self.level, *bounds[0], *bounds[1]).squeeze(axis=tuple(squeeze))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise AnnotationError(f"level {self.level} of {self.shape} pixels may not fit in memory; read a box instead.")
