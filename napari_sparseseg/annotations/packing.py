"""Chunks of labels as immutable bytes: small, hashable, shared between threads, stored in files as they are.

Three forms, told apart by the first byte: one label for the whole chunk; runs of equal labels, row by row (last pixel
of each run as little-endian uint16, then the labels as uint8); zlib for chunks that are too ragged for runs.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from cachetools import LRUCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.uint8]
    Keep = int | frozenset[int] | None
    """Labels that may be painted over: one, some, or (None) all."""

P = ParamSpec("P")
R = TypeVar("R")
OfChunk = Callable[Concatenate[bytes, P], R]

CHUNK = 256
HALF = CHUNK // 2
PIXELS = CHUNK * CHUNK
_UNIFORM, _RUNS, _ZLIB = b"U", b"R", b"Z"
# Above this many runs zlib is smaller than three bytes per run and hardly slower.
_MAX_RUNS = 8192
EMPTY = _UNIFORM + b"\0"
ENTRY_BYTES = 400  # what an entry of a cache takes beside the chunk


def cached_for_chunks(max_bytes: int) -> Callable[[OfChunk[P, R]], OfChunk[P, R]]:
    """Decorator: cache a function of a packed chunk, evicting the least recently used beyond `max_bytes`. Thread-safe.

    `functools.lru_cache` counts entries, and a chunk takes 2 bytes or 24 KB.
    """

    def decorate(function: OfChunk[P, R]) -> OfChunk[P, R]:
        cache: LRUCache[Any, tuple[R, int]] = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])
        lock = threading.Lock()

        @wraps(function)
        def cached(packed: bytes, /, *args: P.args, **kwargs: P.kwargs) -> R:
            key = (packed, *args)
            with lock:
                entry = cache.get(key)
            if entry is None:
                result = function(packed, *args, **kwargs)
                size = ENTRY_BYTES + sum(len(part) for part in (*key, result) if isinstance(part, bytes))
                entry = result, size
                if size <= max_bytes:
                    with lock:
                        cache[key] = entry
            return entry[0]

        return cached

    return decorate


def pack(chunk: Labels) -> bytes:
    """Pack a (256, 256) uint8 chunk; equal chunks give equal bytes."""
    flat = np.ascontiguousarray(chunk).reshape(-1)
    last = np.empty(PIXELS, bool)
    np.not_equal(flat[1:], flat[:-1], out=last[:-1])
    last[-1] = True
    ends = last.nonzero()[0]
    if len(ends) == 1:
        return _UNIFORM + flat[:1].tobytes()
    if len(ends) > _MAX_RUNS:
        return _ZLIB + zlib.compress(flat.tobytes(), 1)
    return _RUNS + ends.astype("<u2").tobytes() + flat[ends].tobytes()


def pack_runs(
    chunk: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], labels: Labels, n: int
) -> list[bytes]:
    """`pack` of `n` chunks that hold runs of pixels and 0 elsewhere.

    Parameters
    ----------
    chunk
        Ascending number, below `n`, of the chunk of each run; every chunk has one.
    starts, ends
        First pixel of each run in its chunk, ascending there, and one past its last; runs do not overlap.
    labels
        Of each run, not 0.
    """
    begins = np.empty(len(chunk), bool)
    begins[0] = True
    touch = (starts[1:] == ends[:-1]) & (labels[1:] == labels[:-1])
    begins[1:] = (chunk[1:] != chunk[:-1]) | ~touch
    first = begins.nonzero()[0]
    chunk, starts, labels, ends = chunk[first], starts[first], labels[first], ends[[*(first[1:] - 1), len(ends) - 1]]
    edge = np.searchsorted(chunk, np.arange(n + 1))
    before = np.empty_like(ends)
    before[1:], before[edge[:-1]] = ends[:-1], 0
    gap, tail = starts > before, np.zeros(len(ends), bool)
    tail[edge[1:] - 1] = ends[edge[1:] - 1] < PIXELS
    after = np.cumsum(1 + gap + tail)  # of the runs of 0 between, too
    at = after - 1 - tail
    last, label = np.full(after[-1], PIXELS - 1, "<u2"), np.zeros(after[-1], np.uint8)
    last[at], label[at] = ends - 1, labels
    last[at[gap] - 1] = starts[gap] - 1
    out = []
    bounds = [0, *after[edge[1:] - 1].tolist()]
    for a, b in pairwise(bounds):
        if b - a == 1:
            out.append(_UNIFORM + label[a:b].tobytes())
        elif b - a > _MAX_RUNS:
            out.append(pack(_filled(last[a:b].astype(np.int64), label[a:b])))
        else:
            out.append(_RUNS + last[a:b].tobytes() + label[a:b].tobytes())
    return out


def _filled(last: NDArray[np.int64], labels: Labels) -> Labels:
    return np.repeat(labels, np.diff(last, prepend=-1)).reshape(CHUNK, CHUNK)


def _runs(packed: bytes) -> tuple[NDArray[np.int64], Labels]:
    n, rest = divmod(len(packed) - 1, 3)
    if rest or n == 0:
        raise ValueError(f"a packed chunk of runs cannot be {len(packed)} bytes long")
    ends = np.frombuffer(packed, "<u2", n, 1).astype(np.int64)
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[0] += 1
    return lengths, np.frombuffer(packed, np.uint8, n, 1 + 2 * n)


@lru_cache(maxsize=256)
def unpack(packed: bytes) -> Labels:
    """The read-only (256, 256) uint8 chunk of `packed`.

    Raises
    ------
    ValueError
        If the bytes are not a packed chunk.
    """
    kind = packed[:1]
    if kind == _UNIFORM and len(packed) == 2:
        flat = np.full(PIXELS, packed[1], np.uint8)
    elif kind == _RUNS:
        lengths, labels = _runs(packed)
        if lengths.min() < 0 or lengths.sum() != PIXELS:
            raise ValueError("the runs of a packed chunk do not fill it")
        flat = np.repeat(labels, lengths)
    elif kind == _ZLIB:
        flat = np.frombuffer(_inflate(packed[1:]), np.uint8)
    else:
        raise ValueError(f"a packed chunk cannot begin with {kind!r}")
    if flat.size != PIXELS:
        raise ValueError(f"a packed chunk holds {flat.size} pixels instead of {PIXELS}")
    flat.flags.writeable = False
    return flat.reshape(CHUNK, CHUNK)


def _inflate(data: bytes) -> bytes:
    """Decompress at most one chunk, so that a forged file cannot make us allocate more."""
    try:
        return zlib.decompressobj().decompress(data, PIXELS + 1)
    except zlib.error as error:
        raise ValueError(f"a packed chunk cannot be decompressed: {error}") from error


@cached_for_chunks(8 << 20)
def label_counts(packed: bytes) -> tuple[tuple[int, int], ...]:
    """(label, pixels) of a packed chunk, label 0 left out."""
    if packed[:1] == _RUNS:
        lengths, labels = _runs(packed)
        n = np.bincount(labels, weights=lengths)
    else:
        n = np.bincount(unpack(packed).reshape(-1))
    return tuple((int(k), int(n[k])) for k in np.flatnonzero(n) if k)


@cached_for_chunks(8 << 20)
def without_quadrants(packed: bytes, quadrants: tuple[int, ...]) -> bytes:
    """The packed chunk with some quadrants (0 to 3, row by row) set to 0."""
    chunk = unpack(packed).copy()
    for q in quadrants:
        y, x = q // 2 * HALF, q % 2 * HALF
        chunk[y : y + HALF, x : x + HALF] = 0
    return pack(chunk) if chunk.any() else EMPTY


def is_uniform(packed: bytes) -> bool:
    """Whether a packed chunk has one label."""
    return packed[:1] == _UNIFORM


def uniform_label(chunk: Labels) -> int | None:
    """The one label of a chunk, or None where there are several."""
    first = int(chunk[0, 0])
    # Two more pixels settle most chunks without reading all of them.
    if chunk[-1, -1] != first or chunk[chunk.shape[0] // 2, chunk.shape[1] // 2] != first:
        return None
    return first if bool((chunk == first).all()) else None


def pool(block: Labels) -> Labels:
    """Maximum over 2 x 2 pixels; both sides of `block` are even."""
    # Pairs of columns as 16-bit numbers: faster than two slices with a step.
    pairs = np.maximum(block[0::2], block[1::2]).view(np.uint16)
    out: Labels = np.maximum(pairs.astype(np.uint8), (pairs >> 8).astype(np.uint8))
    return out


def enlarge(block: NDArray[Any], shift: int) -> NDArray[Any]:
    """Repeat every pixel 2**shift times along both axes; pixels of one byte."""
    if shift == 0:
        return block
    wide = block.view(np.uint8)
    for step in (3,) * (shift // 3) + (shift % 3,) * (shift % 3 > 0):
        # One byte times 0x0101... is that byte in every place: many times faster than `repeat`.
        kind = f"u{1 << step}"
        wide = (wide.astype(kind, order="C") * np.array(int("01" * (1 << step), 16), kind)).view(np.uint8)
    return wide.view(block.dtype).repeat(1 << shift, 0)
