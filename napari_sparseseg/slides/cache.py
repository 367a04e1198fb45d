"""One cache of decoded tiles for all open slides: bounded in bytes, least recently used goes first, thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    import numpy as np

    Tile = np.ndarray[Any, np.dtype[Any]]

DEFAULT_BYTES = 512 * 2**20


class TileCache:
    """Decoded tiles by (owner, key), at most `max_bytes` of them.

    Parameters
    ----------
    max_bytes
        Limit on the sum of the tiles' sizes. A tile larger than the limit is not kept.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[tuple[int, Hashable], Tile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        """Bytes of the tiles held now."""
        return self._bytes

    @property
    def max_bytes(self) -> int:
        """The limit; setting a lower one evicts at once."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        with self._lock:
            self._max_bytes = value
            self._evict()

    @contextmanager
    def limited(self, max_bytes: int) -> Iterator[None]:
        """A lower limit for a while: work that passes over a slide once gains nothing from more."""
        before = self._max_bytes
        self.max_bytes = min(before, max_bytes)
        try:
            yield
        finally:
            self.max_bytes = before

    def get(self, owner: int, key: Hashable) -> Tile | None:
        """The tile, now the most recently used, or None."""
        with self._lock:
            tile = self._tiles.get((owner, key))
            if tile is None:
                self.misses += 1
                return None
            self._tiles.move_to_end((owner, key))
            self.hits += 1
            return tile

    def put(self, owner: int, key: Hashable, tile: Tile) -> None:
        """Keep a tile; it must own its memory (a view would keep alive what it is a view of) and not change again."""
        with self._lock:
            old = self._tiles.pop((owner, key), None)
            if old is not None:
                self._bytes -= old.nbytes
            if tile.nbytes > self._max_bytes:
                return
            self._tiles[owner, key] = tile
            self._bytes += tile.nbytes
            self._evict()

    def forget(self, owner: int) -> None:
        """Drop every tile of an owner (a slide that was closed)."""
        with self._lock:
            for key in [k for k in self._tiles if k[0] == owner]:
                self._bytes -= self._tiles.pop(key).nbytes

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            _, tile = self._tiles.popitem(last=False)
            self._bytes -= tile.nbytes


TILES = TileCache()
