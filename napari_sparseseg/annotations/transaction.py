"""An open edit of a label pyramid.

Painting writes raw chunks at one level, notes which finer chunks have to be updated, and keeps the coarser levels good
enough for display. `Transaction.finish` makes every level exact and returns the chunks that differ.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations.packing import (
    CHUNK,
    EMPTY,
    HALF,
    PIXELS,
    enlarge,
    is_uniform,
    pack,
    pack_runs,
    pool,
    uniform_label,
    unpack,
)
from napari_sparseseg.annotations.pyramid import ZEROS, LabelPyramid, children, chunk_parts, cut, quadrant
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_sparseseg.annotations.packing import Keep, Labels
    from napari_sparseseg.annotations.pyramid import Key, PackedPyramid
    from napari_sparseseg.annotations.raster import PixelRuns

    Mask = NDArray[np.bool_]


class Transaction(LabelPyramid):
    """Raw chunks that hide the packed ones of a pyramid until they are committed; not thread-safe.

    Parameters
    ----------
    committed
        The pyramid that is edited; not changed.
    top
        The coarsest level as a raw array, a whole number of chunks per side; painted in place.
    max_raw
        Raw chunks beyond this number are packed, oldest first.
    """

    def __init__(self, committed: PackedPyramid, top: Labels, max_raw: int) -> None:
        super().__init__(committed.shape, committed.coarsest)
        self._packed = committed.levels
        self._top = top
        self._max_raw = max_raw
        self._raw: dict[tuple[int, Key], None] = {}  # which chunks are raw, oldest first; without the coarsest level
        # None: the chunk is deleted.
        self._chunks: list[dict[Key, Labels | bytes | None]] = [{} for _ in self.shapes]
        self._label = 0
        self._keep: Keep = None
        # Per level: where `_label` was painted over finer chunks and has yet to be written into them.
        self._pending: list[dict[Key, Mask]] = []
        self._settled: set[Key] = set()  # level-0 chunks whose parents hold what `finish` would make of them
        self._exact = True  # the coarser levels hold what `finish` would make of them

    # ------------------------------------------------------------------ painting
    def paint_mask(
        self, level: int, y0: int, x0: int, mask: Mask, label: int, keep: Keep = None, *, live: bool = True
    ) -> Box | None:
        """Write `label` where `mask` is true; see `LabelQuadtree.paint_mask`."""
        height, width = self.valid(level)
        area = Box(y0, x0, *mask.shape).intersection(Box(0, 0, height, width))
        mask = cut(mask, (0, 0), Box(area.y - y0, area.x - x0, area.height, area.width)) if area.area else mask[:0, :0]
        if not mask.any() or label == keep:
            return None
        if (self._label, self._keep) != (label, keep):
            self._flush_pending()
            self._label, self._keep = label, keep
        for key, part in chunk_parts(area):
            piece = mask[part.y - area.y : part.y1 - area.y, part.x - area.x : part.x1 - area.x]
            if piece.any():
                self._paint_chunk(level, key, part, piece)
        self._exact &= live and (keep is None or not self._pending)
        if live:
            self._show_coarser(level, area)
        self._spill(self._max_raw)
        return Box(area.y << level, area.x << level, area.height << level, area.width << level)

    def paint_runs(self, runs: PixelRuns, labels: Labels) -> None:
        """Write runs of pixels into level-0 chunks; see `LabelQuadtree.paint_runs`."""
        self._flush_pending()
        self._exact = False
        pixel = runs.chunk * PIXELS + runs.starts
        order = np.argsort(pixel, kind="stable")
        first, last = pixel[order], (pixel + runs.lengths)[order]
        # Chunks of nothing but these runs, side by side, are packed without being drawn.
        odd = np.bincount(runs.chunk, minlength=len(runs.keys)) == 0
        odd[first[1:][first[1:] < last[:-1]] // PIXELS] = True
        odd[runs.chunk[labels == 0]] = True
        keys = [(i, j) for i, j in runs.keys.tolist()]
        edges = np.searchsorted(runs.chunk, np.arange(len(keys) + 1)).tolist()
        for n, key in enumerate(keys):
            a, b = edges[n : n + 2]
            if (odd[n] and a < b) or (not odd[n] and not self._is_blank(key)):
                odd[n] = True
                _write_runs(self._writable(0, key), runs.starts[a:b], runs.lengths[a:b], labels[a:b])
                self._spill(self._max_raw)
        number = np.cumsum(~odd) - 1
        order = order[~odd[runs.chunk[order]]]
        if len(order):
            blank = [key for key, other in zip(keys, odd.tolist(), strict=True) if not other]
            starts = runs.starts[order]
            self._fill_blank(blank, number[runs.chunk[order]], starts, starts + runs.lengths[order], labels[order])

    def _is_blank(self, key: Key) -> bool:
        """Whether a level-0 chunk lies on the slide as a whole, does not exist and reads as 0."""
        if self._exists(0, key) or any((k + 1) * CHUNK > n for k, n in zip(key, self.shape, strict=True)):
            return False
        for level in range(1, self.top_level + 1):
            chunk = self._stored(level, (key[0] >> level, key[1] >> level))
            if chunk is not None:
                size = max(1, CHUNK >> level)
                y, x = ((k % (1 << level)) * CHUNK >> level for k in key)
                return not chunk[y : y + size, x : x + size].any()
        return True

    def _fill_blank(
        self,
        keys: list[Key],
        chunk: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        labels: Labels,
    ) -> None:
        """Store blank level-0 chunks, those of one parent one after the other, that get runs as `pack_runs` takes."""
        for key, packed in zip(keys, pack_runs(chunk, starts, ends, labels, len(keys)), strict=True):
            if not is_uniform(packed):  # else its parent says the same
                self._chunks[0][key] = packed
                self._settled.add(key)
        at = np.array(keys)
        corner = (at % 2 * HALF @ (CHUNK, 1))[chunk]
        column = starts % CHUNK
        first = corner + starts // (2 * CHUNK) * CHUNK + column // 2
        lengths = (column + ends - starts + 1) // 2 - column // 2
        new = np.ones(len(at), bool)
        new[1:] = (at[1:] // 2 != at[:-1] // 2).any(axis=1)
        edges = [*np.searchsorted(chunk, new.nonzero()[0]).tolist(), len(chunk)]
        for n, (a, b) in zip(new.nonzero()[0].tolist(), pairwise(edges), strict=True):
            parent = keys[n][0] // 2, keys[n][1] // 2
            # The largest label comes last: a coarse pixel is the maximum of those below.
            order = a + np.argsort(labels[a:b], kind="stable")
            _write_runs(self._writable(1, parent), first[order], lengths[order], labels[order])
            self._spill(self._max_raw)

    def replace_label(self, old: int, new: int) -> None:
        """Turn every pixel of label `old` into `new`."""
        self._flush_pending()
        self._exact = False
        for level, packed in enumerate(self._packed):
            for key in {**packed, **self._chunks[level]}:
                chunk = self._stored(level, key)
                if chunk is not None and (chunk == old).any():
                    writable = self._writable(level, key)
                    writable[writable == old] = new

    def _paint_chunk(self, level: int, key: Key, part: Box, mask: Mask) -> None:
        if self._label == 0 and not self._exists(level, key) and not self.read(level, *_bounds(part)).any():
            return
        write_label(cut(self._writable(level, key), key, part), mask, self._label, self._keep)
        if level and any(self._exists(level - 1, child) for child in children(key)):
            if not self._pending:
                self._pending = [{} for _ in self.shapes]
            whole = self._pending[level].setdefault(key, np.zeros((CHUNK, CHUNK), bool))
            view = cut(whole, key, part)
            view |= mask

    def _show_coarser(self, level: int, area: Box) -> None:
        y0, y1, x0, x1 = _bounds(area)
        for k in range(level + 1, self.top_level + 1):
            y0, y1, x0, x1 = y0 >> 1, (y1 + 1) >> 1, x0 >> 1, (x1 + 1) >> 1
            block = pool(self.read(k - 1, 2 * y0, 2 * y1, 2 * x0, 2 * x1))
            for key, part in chunk_parts(Box(y0, x0, y1 - y0, x1 - x0)):
                piece = block[part.y - y0 : part.y1 - y0, part.x - x0 : part.x1 - x0]
                if self._exists(k, key) or not np.array_equal(piece, self.read(k, *_bounds(part))):
                    cut(self._writable(k, key), key, part)[...] = piece

    # ------------------------------------------------------------------ end
    def finish(self) -> dict[tuple[int, Key], tuple[bytes | None, bytes | None]]:
        """Make every level exact; packed chunks before and after by (level, key), None where one does not exist."""
        self._flush_pending()
        out = {}
        for level, chunks in enumerate(self._chunks):
            # Children of one chunk follow one another, so that it is complete before it is spilled.
            for key in sorted(chunks, key=lambda key: (key[0] >> 1, key[1] >> 1)):
                if level < self.top_level and not (level == 0 and key in self._settled):
                    self._settle(level, key)
                    self._spill(self._max_raw)
                before, after = self._packed[level].get(key), self._pack(level, key)
                if level == self.top_level and after == EMPTY:
                    after = None
                if before != after:
                    out[level, key] = (before, after)
        return out

    def abort(self) -> None:
        """Restore the coarsest level, the only one that was painted in place."""
        for key in self._chunks[self.top_level]:
            self._top_chunk(key)[...] = unpack(self._packed[self.top_level].get(key, EMPTY))

    def _flush_pending(self) -> None:
        """Write what was painted over finer chunks into them."""
        pending, self._pending = self._pending, []
        for level in range(len(pending) - 1, -1, -1):
            for key, mask in pending[level].items():
                self._push_down(level, key, mask)

    def _push_down(self, level: int, key: Key, mask: Mask) -> None:
        """Paint the chunks below `key` where `mask` is true; its pixels, of this level or coarser, cover the chunk."""
        half = len(mask) // 2
        for child in children(key):
            part = mask
            if half:
                part = mask[child[0] % 2 * half :, child[1] % 2 * half :][:half, :half]
            if not self._exists(level - 1, child) or not part.any():
                continue
            if self._keep is None and part.all():
                # Overwritten entirely: the coarser chunk is enough.
                self._delete(level - 1, child)
                continue
            if level > 1:
                self._push_down(level - 1, child, part)
            height, width = (max(0, n - k * CHUNK) for n, k in zip(self.valid(level - 1), child, strict=True))
            fine = enlarge(part, (CHUNK // len(part)).bit_length() - 1)
            chunk = self._writable(level - 1, child)[:height, :width]
            write_label(chunk, fine[:height, :width], self._label, self._keep)
        self._spill(2 * self._max_raw)

    def _settle(self, level: int, key: Key) -> None:
        """Reduce a touched chunk into its parent, and drop it where the parent already says the same."""
        stored = self._chunks[level][key]
        if stored is None:
            return
        chunk = unpack(stored) if isinstance(stored, bytes) else stored
        if not self._exact:
            parent = (key[0] // 2, key[1] // 2)
            block = pool(chunk)
            above = self._stored(level + 1, parent)
            if above is None or not np.array_equal(above[quadrant(key)], block):
                self._writable(level + 1, parent)[quadrant(key)] = block
        height, width = (n - k * CHUNK for n, k in zip(self.valid(level), key, strict=True))
        has_finer = level > 0 and any(self._exists(level - 1, child) for child in children(key))
        if not has_finer and uniform_label(chunk[:height, :width]) is not None:
            self._delete(level, key)

    # ------------------------------------------------------------------ chunks
    def _exists(self, level: int, key: Key) -> bool:
        if level == self.top_level:
            return True
        if key in self._chunks[level]:
            return self._chunks[level][key] is not None
        return key in self._packed[level]

    def _stored(self, level: int, key: Key) -> Labels | None:
        """A chunk without what is still pending from coarser levels."""
        if level == self.top_level:
            return self._top_chunk(key)
        chunk = self._chunks[level].get(key, self._packed[level].get(key))
        return unpack(chunk) if isinstance(chunk, bytes) else chunk

    def _top_chunk(self, key: Key) -> Labels:
        y, x = key[0] * CHUNK, key[1] * CHUNK
        return self._top[y : y + CHUNK, x : x + CHUNK]

    def _chunk(self, level: int, key: Key) -> Labels | None:
        chunk = self._stored(level, key)
        if chunk is None or not self._pending:
            return chunk
        for k in range(level + 1, self.top_level + 1):
            shift = k - level
            mask = self._pending[k].get((key[0] >> shift, key[1] >> shift))
            if mask is not None:
                chunk = chunk.copy()
                write_label(chunk, zoomed(mask, key, shift), self._label, self._keep)
        return chunk

    def _writable(self, level: int, key: Key) -> Labels:
        """The raw chunk, created with its ancestors where it does not exist."""
        chunks = self._chunks[level]
        if level == self.top_level:
            chunks[key] = self._top_chunk(key)
            return self._top_chunk(key)
        chunk = chunks.get(key)
        if isinstance(chunk, np.ndarray):
            return chunk
        if level == 0:
            self._settled.discard(key)
        stored = self._stored(level, key)
        if stored is None:
            parent = (key[0] // 2, key[1] // 2)
            if not self._exists(level + 1, parent):
                self._writable(level + 1, parent)
            above = self._stored(level + 1, parent)
            part = (ZEROS if above is None else above)[quadrant(key)]
            new = enlarge(part, 1) if part.any() else ZEROS.copy()
            height, width = (n - k * CHUNK for n, k in zip(self.valid(level), key, strict=True))
            # An enlarged pixel at the edge may cover pixels outside the slide, which could never be erased again.
            new[max(0, height) :] = 0
            new[:, max(0, width) :] = 0
        else:
            new = stored.copy()
        chunks[key] = new
        self._raw[level, key] = None
        return new

    def _delete(self, level: int, key: Key) -> None:
        self._raw.pop((level, key), None)
        self._chunks[level][key] = None
        for child in children(key) if level else ():
            if self._exists(level - 1, child):
                self._delete(level - 1, child)

    def _spill(self, most: int) -> None:
        """Pack the older half of the raw chunks where there are more than `most`."""
        if len(self._raw) > most:
            for level, key in list(islice(self._raw, (len(self._raw) + 1) // 2)):
                self._pack(level, key)

    def _pack(self, level: int, key: Key) -> bytes | None:
        chunk = self._chunks[level][key]
        if isinstance(chunk, np.ndarray):
            chunk = self._chunks[level][key] = pack(chunk)
            self._raw.pop((level, key), None)
        return chunk


def _write_runs(chunk: Labels, starts: NDArray[np.int64], lengths: NDArray[np.int64], labels: Labels) -> None:
    """Write runs of pixels, given by their flat index, into a chunk, later ones over earlier ones."""
    shift = starts.copy()
    shift[1:] -= np.cumsum(lengths)[:-1]
    index = np.repeat(shift, lengths)
    index += np.arange(len(index))
    flat = chunk.reshape(-1)
    flat[index] = np.repeat(labels, lengths)
    if not chunk.flags.c_contiguous:
        chunk[...] = flat.reshape(chunk.shape)


def write_label(chunk: Labels, mask: Mask, label: int, keep: Keep) -> None:
    """Write `label` into a chunk where `mask` is true and, with `keep`, where the chunk holds (one of) those labels."""
    if isinstance(keep, frozenset):
        mask = mask & _table(keep)[chunk]
    elif keep is not None:
        mask = mask & (chunk == keep)
    # Flips the bits that differ where the mask is true: `copyto` is thirty times slower with ragged masks.
    flips = mask.view(np.uint8) * np.uint8(255)
    flips &= chunk ^ np.uint8(label)
    chunk ^= flips


@lru_cache(maxsize=8)
def _table(labels: frozenset[int]) -> Mask:
    table = np.zeros(256, bool)
    table[list(labels)] = True
    return table


def zoomed(mask: Mask, key: Key, shift: int) -> Mask:
    """The part of a chunk's mask that covers the chunk `key`, `shift` levels finer, in pixels of that chunk."""
    size = max(1, CHUNK >> shift)
    y, x = ((k % (1 << shift)) * CHUNK >> shift for k in key)
    return enlarge(mask[y : y + size, x : x + size], min(shift, CHUNK.bit_length() - 1))


def _bounds(box: Box) -> tuple[int, int, int, int]:
    return box.y, box.y1, box.x, box.x1
