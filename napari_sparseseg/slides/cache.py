"""One cache of decoded tiles for all open slides."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    import numpy as np

    Tile = np.ndarray[Any, np.dtype[Any]]

DEFAULT_BYTES = 512 * 2**20


class TileCache:
    """Decoded tiles by (owner, key); evicts the least recently used beyond `max_bytes`. Thread-safe.

    Parameters
    ----------
    max_bytes
        Limit on the sum of the tiles' sizes in bytes. A tile larger than the limit is not cached.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        # Unbounded, because LRUCache cannot change its size later; `_evict` applies the limit.
        self._tiles: LRUCache[tuple[int, Hashable], Tile] = LRUCache(math.inf, getsizeof=lambda tile: tile.nbytes)
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Size of the cached tiles in bytes."""
        return int(self._tiles.currsize)

    @property
    def max_bytes(self) -> int:
        """The limit in bytes; setting a lower one evicts at once."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        with self._lock:
            self._max_bytes = value
            self._evict()

    @contextmanager
    def limited(self, max_bytes: int) -> Iterator[None]:
        """Lower the limit within a ``with`` block, for work that reads each tile once."""
        before = self._max_bytes
        self.max_bytes = min(before, max_bytes)
        try:
            yield
        finally:
            self.max_bytes = before

    def get(self, owner: int, key: Hashable) -> Tile | None:
        """The tile, now the most recently used; None if it is not cached."""
        with self._lock:
            return self._tiles.get((owner, key))

    def put(self, owner: int, key: Hashable, tile: Tile) -> None:
        """Cache a tile. It must own its memory (a view would retain its base array) and must not change later."""
        with self._lock:
            self._tiles.pop((owner, key), None)
            if tile.nbytes <= self._max_bytes:
                self._tiles[owner, key] = tile
                self._evict()

    def forget(self, owner: int) -> None:
        """Drop all tiles of an owner (a closed slide)."""
        with self._lock:
            for key in [k for k in self._tiles if k[0] == owner]:
                del self._tiles[key]

    def _evict(self) -> None:
        while self._tiles.currsize > self._max_bytes:
            self._tiles.popitem()


TILES = TileCache()
