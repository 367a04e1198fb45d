"""The editable sparse label quadtree: what the user paints into.

Painting writes at one level, marks what finer chunks will have to take over and keeps the coarser levels good enough to
look at. `commit` makes all levels exact, drops the chunks that say nothing new, packs the rest and returns the
`Change`, which can be reverted and applied again. `abort` forgets all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.overlay import OPEN_CHUNKS, OverlaidPyramid, Overlay, ink
from napari_sparseseg.annotations.packing import CHUNK, EMPTY, enlarge, pack, pool, uniform_label, unpack
from napari_sparseseg.annotations.pyramid import children, chunk_parts, cut, quadrant
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Keep
    from napari_sparseseg.annotations.pyramid import Key

    Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction did: packed chunks before and after by (level, chunk), and the counts it added."""

    chunks: dict[tuple[int, Key], tuple[bytes | None, bytes | None]]
    counts: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Memory of the packed chunks on both sides, with what Python adds to every object."""
        return sum(200 + len(a or b"") + len(b or b"") for a, b in self.chunks.values())


class LabelQuadtree(OverlaidPyramid):
    """Sparse uint8 label pyramid that is painted at any level; thread-safe.

    Parameters
    ----------
    shape
        Slide (H, W) in level-0 pixels.
    """

    # ------------------------------------------------------------------ painting
    def begin(self) -> None:
        """Open a transaction.

        Raises
        ------
        AnnotationError
            If one is open already.
        """
        with self.lock:
            if self._open is not None:
                raise AnnotationError("a stroke is open already; commit or abort it first.")
            self._open = Overlay([{} for _ in self.shapes])

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
            Level whose pixels `y0`, `x0` and the bool `mask` (h, w) count.
        label
            0 to 255; 0 erases.
        keep
            Where given, only level-0 pixels that hold this label, or one of these, are written.
        live
            Whether coarser levels are to show it before `commit`.

        Returns
        -------
        Box
            What may have changed, in level-0 pixels; None where nothing lies on the slide.
        """
        height, width = self.valid(level)
        area = Box(y0, x0, *mask.shape).intersection(Box(0, 0, height, width))
        mask = cut(mask, (0, 0), Box(area.y - y0, area.x - x0, area.height, area.width)) if area.area else mask[:0, :0]
        if not mask.any() or label == keep:
            return None
        with self.lock:
            overlay = self._transaction()
            if overlay.ink != (label, keep):
                self._flush_pending()
                overlay.ink = (label, keep)
            for key, part in chunk_parts(area):
                piece = mask[part.y - area.y : part.y1 - area.y, part.x - area.x : part.x1 - area.x]
                if piece.any():
                    self._paint_chunk(level, key, part, piece)
            overlay.exact &= live and (keep is None or not overlay.pending)
            if live:
                self._show_coarser(level, area)
            if overlay.raw > OPEN_CHUNKS:
                self._spill(overlay)
        return Box(area.y << level, area.x << level, area.height << level, area.width << level)

    def paint_many(self, pieces: Sequence[tuple[int, int, Mask, int]]) -> None:
        """Write (y0, x0, mask, label) at level 0, in order, chunk by chunk; for many small pieces from far apart."""
        clip = Box(0, 0, *self.shape)
        parts: list[tuple[Key, int, Box]] = []
        for n, (y0, x0, mask, _) in enumerate(pieces):
            parts.extend((key, n, part) for key, part in chunk_parts(Box(y0, x0, *mask.shape).intersection(clip)))
        parts.sort()
        with self.lock:
            overlay = self._transaction()
            overlay.exact = False
            self._flush_pending()
            for key, n, part in parts:
                y0, x0, mask, label = pieces[n]
                overlay.ink = (label, None)
                self._paint_chunk(0, key, part, mask[part.y - y0 : part.y1 - y0, part.x - x0 : part.x1 - x0])
                if overlay.raw > OPEN_CHUNKS:
                    self._spill(overlay)

    def _paint_chunk(self, level: int, key: Key, part: Box, mask: Mask) -> None:
        overlay = self._transaction()
        label, keep = overlay.ink or (0, None)
        if label == 0 and not self._exists(level, key) and not self._read(level, *_bounds(part)).any():
            return
        ink(cut(self._writable(level, key), key, part), mask, label, keep)
        if level and any(self._exists(level - 1, child) for child in children(key)):
            if not overlay.pending:
                overlay.pending = [{} for _ in self.shapes]
            whole = overlay.pending[level].setdefault(key, np.zeros((CHUNK, CHUNK), bool))
            view = cut(whole, key, part)
            view |= mask

    def _show_coarser(self, level: int, area: Box) -> None:
        y0, y1, x0, x1 = _bounds(area)
        for k in range(level + 1, self.top_level + 1):
            y0, y1, x0, x1 = y0 >> 1, (y1 + 1) >> 1, x0 >> 1, (x1 + 1) >> 1
            block = pool(self._read(k - 1, 2 * y0, 2 * y1, 2 * x0, 2 * x1))
            for key, part in chunk_parts(Box(y0, x0, y1 - y0, x1 - x0)):
                piece = block[part.y - y0 : part.y1 - y0, part.x - x0 : part.x1 - x0]
                if self._exists(k, key) or not np.array_equal(piece, self._read(k, *_bounds(part))):
                    cut(self._writable(k, key), key, part)[...] = piece

    def replace_label(self, old: int, new: int) -> None:
        """Turn every pixel of label `old` into `new` in the open transaction."""
        with self.lock:
            self._flush_pending()
            overlay = self._transaction()
            overlay.exact = False
            for level, packed in enumerate(self._packed):
                for key in {**packed, **overlay.chunks[level]}:
                    chunk = self._stored(level, key)
                    if chunk is not None and (chunk == old).any():
                        writable = self._writable(level, key)
                        writable[writable == old] = new

    # ------------------------------------------------------------------ commit
    def _flush_pending(self) -> None:
        """Write what was painted over finer chunks into them."""
        overlay = self._transaction()
        pending, overlay.pending = overlay.pending, []
        for level in range(len(pending) - 1, -1, -1):
            for key, mask in pending[level].items():
                self._push_down(level, key, mask)

    def _push_down(self, level: int, key: Key, mask: Mask) -> None:
        """Write into the chunks below `key` what `mask`, which covers it with pixels of its level or coarser, has."""
        overlay = self._transaction()
        label, keep = overlay.ink or (0, None)
        half = len(mask) // 2
        for child in children(key):
            part = mask
            if half:
                part = mask[child[0] % 2 * half :, child[1] % 2 * half :][:half, :half]
            if not self._exists(level - 1, child) or not part.any():
                continue
            if keep is None and part.all():
                # Overwritten from rim to rim: the coarser chunk says it all.
                self._delete(level - 1, child)
                continue
            if level > 1:
                self._push_down(level - 1, child, part)
            height, width = (max(0, n - k * CHUNK) for n, k in zip(self.valid(level - 1), child, strict=True))
            fine = enlarge(part, (CHUNK // len(part)).bit_length() - 1)
            ink(self._writable(level - 1, child)[:height, :width], fine[:height, :width], label, keep)
        if overlay.raw > 2 * OPEN_CHUNKS:
            self._spill(overlay)

    def _delete(self, level: int, key: Key) -> None:
        overlay = self._transaction()
        overlay.raw -= isinstance(overlay.chunks[level].get(key), np.ndarray)
        overlay.chunks[level][key] = None
        for child in children(key) if level else ():
            if self._exists(level - 1, child):
                self._delete(level - 1, child)

    def commit(self) -> Change | None:
        """Make all levels exact and the transaction permanent; None where it changed nothing."""
        with self.lock:
            overlay = self._transaction()
            self._flush_pending()
            for level in range(self.top_level):
                for key in list(overlay.chunks[level]):
                    self._settle(level, key)
            chunks = self._difference(overlay)
            self._open = None
            if not chunks:
                return None
            where = set(chunks) | {(k + 1, (i // 2, j // 2)) for k, (i, j) in chunks if k < self.top_level}
            before = self._count(where)
            self._replace({at: after for at, (_, after) in chunks.items()})
            added = self._count(where) - before
            self._counts += added
            return Change(chunks, added)

    def _settle(self, level: int, key: Key) -> None:
        """Reduce a touched chunk into its parent, and drop it where it says no more than its parent."""
        overlay = self._transaction()
        stored = overlay.chunks[level][key]
        if stored is None:
            return
        chunk = unpack(stored) if isinstance(stored, bytes) else stored
        if not overlay.exact:
            parent = (key[0] // 2, key[1] // 2)
            block = pool(chunk)
            above = self._stored(level + 1, parent)
            if above is None or not np.array_equal(above[quadrant(key)], block):
                self._writable(level + 1, parent)[quadrant(key)] = block
        height, width = (n - k * CHUNK for n, k in zip(self.valid(level), key, strict=True))
        has_finer = level > 0 and any(self._exists(level - 1, child) for child in children(key))
        if not has_finer and uniform_label(chunk[:height, :width]) is not None:
            self._delete(level, key)

    def _difference(self, overlay: Overlay) -> dict[tuple[int, Key], tuple[bytes | None, bytes | None]]:
        out = {}
        for level, chunks in enumerate(overlay.chunks):
            for key, chunk in chunks.items():
                before = self._packed[level].get(key)
                after = pack(chunk) if isinstance(chunk, np.ndarray) else chunk
                if level == self.top_level and after == EMPTY:
                    after = None
                if before != after:
                    out[level, key] = (before, after)
        return out

    def abort(self) -> None:
        """Forget the open transaction."""
        with self.lock:
            touched = self._transaction().chunks[self.top_level]
            self._open = None
            for key in touched:
                self._top_chunk(key)[...] = unpack(self._packed[self.top_level].get(key, EMPTY))

    def apply(self, change: Change, *, revert: bool = False) -> None:
        """Make a committed change again, or take it back; changes are a stack, the newest is reverted first."""
        with self.lock:
            if self._open is not None:
                raise AnnotationError("a stroke is open; commit or abort it before undo or redo.")
            self._replace({at: pair[0 if revert else 1] for at, pair in change.chunks.items()})
            self._counts += -change.counts if revert else change.counts

    def restore(self, chunks: Mapping[tuple[int, Key], bytes], counts: Mapping[int, int] | None = None) -> None:
        """Fill an empty quadtree with the packed chunks, and the counts, of another of the same shape.

        Raises
        ------
        AnnotationError
            Where a chunk lies outside.
        """
        _require_inside(chunks, self.shapes)
        with self.lock:
            self._replace(chunks)
            if counts is None:
                self._counts += self._count(set(chunks))
            for label, n in (counts or {}).items():
                self._counts[label] = n


def _bounds(box: Box) -> tuple[int, int, int, int]:
    return box.y, box.y1, box.x, box.x1


def _require_inside(chunks: Iterable[tuple[int, Key]], shapes: Sequence[tuple[int, int]]) -> None:
    grids = [(-(-h // CHUNK), -(-w // CHUNK)) for h, w in shapes]
    for level, (i, j) in chunks:
        if not (0 <= level < len(grids) and 0 <= i < grids[level][0] and 0 <= j < grids[level][1]):
            raise AnnotationError(f"label chunk {(level, i, j)} lies outside of the slide; the file is damaged.")
