"""A pyramid with an open transaction over it: raw chunks that hide the packed ones until they are committed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.annotations.packing import CHUNK, EMPTY, enlarge, pack, unpack
from napari_sparseseg.annotations.pyramid import ZEROS, FrozenPyramid, LabelPyramid, leaf_counts, quadrant
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Keep, Labels
    from napari_sparseseg.annotations.pyramid import Key

    Mask = NDArray[np.bool_]

# Raw chunks of an open transaction; beyond it the oldest are packed. 32 MB.
OPEN_CHUNKS = 512


class LevelView:
    """One level as the array-like that napari slices: dtype, shape, ndim, size, chunks and reading by index."""

    def __init__(self, tree: LabelPyramid, level: int) -> None:
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
        raise AnnotationError(f"level {self.level} of {self.shape} pixels is not meant to fit in memory; read a box.")


@dataclass(slots=True)
class Overlay:
    """An open transaction. A chunk that is None is deleted."""

    chunks: list[dict[Key, Labels | bytes | None]]
    pending: list[dict[Key, Mask]] = field(default_factory=list)
    """Per level: what was painted over existing finer chunks and has still to be written into them."""
    ink: tuple[int, Keep] | None = None
    """(label, keep) of `pending`."""
    raw: int = 0
    exact: bool = True
    """Whether the coarser levels hold what `commit` would make of them."""


class OverlaidPyramid(LabelPyramid):
    """Storage of the editable quadtree: committed chunks, packed and immutable, and the overlay of a transaction."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self._packed: list[dict[Key, bytes]] = [{} for _ in self.shapes]
        self._counts = np.zeros(256, np.int64)
        self._open: Overlay | None = None
        self.lock = threading.RLock()
        h, w = self.shapes[-1]
        self._top = np.zeros((-(-h // CHUNK) * CHUNK, -(-w // CHUNK) * CHUNK), np.uint8)
        # napari keeps the coarsest level for ever, so it is one array that is written in place.
        self.top = self._top[:h, :w]

    def levels(self) -> list[Any]:
        """One `LevelView` per level and the live ndarray of the coarsest, for a multiscale layer."""
        return [LevelView(self, k) for k in range(self.top_level)] + [self.top]

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> Labels:
        """Labels of a box in pixels of `level`, an open transaction included.

        While labels are preserved, levels coarser than the painted one may show a pixel too many or
        too few where finer chunks exist; `commit` makes them exact.
        """
        with self.lock:
            return self._read(level, y0, y1, x0, x1)

    def freeze(self) -> FrozenPyramid:
        """The committed state as a pyramid that never changes."""
        with self.lock:
            return FrozenPyramid(self.shape, [dict(chunks) for chunks in self._packed])

    def packed(self) -> dict[tuple[int, Key], bytes]:
        """The committed chunks by (level, key), as a file stores them."""
        with self.lock:
            return {(level, key): data for level, chunks in enumerate(self._packed) for key, data in chunks.items()}

    def counts(self) -> NDArray[np.int64]:
        """Committed level-0 pixels per label (256,); entry 0 is always 0."""
        with self.lock:
            return self._counts.copy()

    def nonzero_counts(self) -> dict[int, int]:
        """`counts` of the labels that occur."""
        counts = self.counts()
        return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}

    @property
    def nbytes(self) -> int:
        """Memory of the committed chunks and the coarsest level."""
        with self.lock:
            return self._top.nbytes + sum(150 + len(z) for chunks in self._packed for z in chunks.values())

    def _exists(self, level: int, key: Key) -> bool:
        if level == self.top_level:
            return True
        if self._open and key in self._open.chunks[level]:
            return self._open.chunks[level][key] is not None
        return key in self._packed[level]

    def _stored(self, level: int, key: Key) -> Labels | None:
        """A chunk without what is still pending from coarser levels."""
        if level == self.top_level:
            return self._top_chunk(key)
        chunk: Labels | bytes | None = self._packed[level].get(key)
        if self._open:
            chunk = self._open.chunks[level].get(key, chunk)
        return unpack(chunk) if isinstance(chunk, bytes) else chunk

    def _top_chunk(self, key: Key) -> Labels:
        y, x = key[0] * CHUNK, key[1] * CHUNK
        return self._top[y : y + CHUNK, x : x + CHUNK]

    def _chunk(self, level: int, key: Key) -> Labels | None:
        chunk = self._stored(level, key)
        if chunk is None or self._open is None or not self._open.pending or self._open.ink is None:
            return chunk
        for k in range(level + 1, self.top_level + 1):
            shift = k - level
            mask = self._open.pending[k].get((key[0] >> shift, key[1] >> shift))
            if mask is not None:
                chunk = chunk.copy()
                ink(chunk, zoomed(mask, key, shift), *self._open.ink)
        return chunk

    def _writable(self, level: int, key: Key) -> Labels:
        """The raw chunk of the open transaction, made with its ancestors where it does not exist."""
        overlay = self._transaction()
        chunks = overlay.chunks[level]
        if level == self.top_level:
            chunks[key] = self._top_chunk(key)
            return self._top_chunk(key)
        chunk = chunks.get(key)
        if isinstance(chunk, np.ndarray):
            return chunk
        stored = self._stored(level, key)
        if stored is None:
            parent = (key[0] // 2, key[1] // 2)
            if not self._exists(level + 1, parent):
                self._writable(level + 1, parent)
            above = self._stored(level + 1, parent)
            part = (ZEROS if above is None else above)[quadrant(key)]
            new = enlarge(part, 1) if part.any() else ZEROS.copy()
            height, width = (n - k * CHUNK for n, k in zip(self.valid(level), key, strict=True))
            # What an enlarged pixel at the rim covers outside the slide could never be erased again.
            new[max(0, height) :] = 0
            new[:, max(0, width) :] = 0
        else:
            new = stored.copy()
        chunks.pop(key, None)
        chunks[key] = new
        overlay.raw += 1
        return new

    def _spill(self, overlay: Overlay) -> None:
        """Pack the older half of the raw chunks of a large transaction."""
        for chunks in overlay.chunks[:-1]:
            raw = [key for key, chunk in chunks.items() if isinstance(chunk, np.ndarray)]
            for key in raw[: (len(raw) + 1) // 2]:
                chunks[key] = pack(chunks[key])  # type: ignore[arg-type]  # raw by the line above
                overlay.raw -= 1

    def _count(self, where: set[tuple[int, Key]]) -> NDArray[np.int64]:
        total = np.zeros(256, np.int64)
        for level, key in where:
            for label, n in leaf_counts(self.shape, self._packed, level, key):
                total[label] += n
        return total

    def _replace(self, chunks: Mapping[tuple[int, Key], bytes | None]) -> None:
        for (level, key), packed in chunks.items():
            if packed is None:
                self._packed[level].pop(key, None)
            else:
                self._packed[level][key] = packed
            if level == self.top_level:
                self._top_chunk(key)[...] = unpack(packed or EMPTY)

    def _transaction(self) -> Overlay:
        if self._open is None:
            raise AnnotationError("no stroke is open; begin one first.")
        return self._open


def ink(chunk: Labels, mask: Mask, label: int, keep: Keep) -> None:
    """Write `label` into a chunk where `mask` is true and, with `keep`, where the chunk holds (one of) those labels."""
    if isinstance(keep, frozenset):
        mask = mask & _table(keep)[chunk]
    elif keep is not None:
        mask = mask & (chunk == keep)
    # Bits that differ are turned where the mask is true: ragged masks take `copyto` thirty times longer.
    turned = mask.view(np.uint8) * np.uint8(255)
    turned &= chunk ^ np.uint8(label)
    chunk ^= turned


@lru_cache(maxsize=8)
def _table(labels: frozenset[int]) -> Mask:
    table = np.zeros(256, bool)
    table[list(labels)] = True
    return table


def zoomed(mask: Mask, key: Key, shift: int) -> Mask:
    """The part of a chunk's mask that covers the chunk `key`, `shift` levels finer, in that chunk's pixels."""
    size = max(1, CHUNK >> shift)
    y, x = ((k % (1 << shift)) * CHUNK >> shift for k in key)
    return enlarge(mask[y : y + size, x : x + size], min(shift, CHUNK.bit_length() - 1))
