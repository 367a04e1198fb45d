"""The bounded store of predicted tiles that the live layers read.

The prediction pyramid has the training resolution as level 0 and halves from there. One thread, the engine, writes; the
GUI thread only reads. Tiles are replaced, never changed in place, so readers need no lock. A read assembles stored
tiles and never computes; where a level has no tile its nearest coarser ancestor is shown.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.prediction.tiles import entropy, narrowness

TILE = 512
COARSEST = 1024
"""The top level is one dense array of at most this many pixels a side (napari reads it whole)."""
LABELS, UNCERTAINTY, MARGIN, CHANGED, PROBABILITY = 0, 1, 2, 3, 4
"""Channels of a tile: class ids; entropy, and 1 minus the margin between the two likeliest classes, scaled to 0..255;
255 where the previous model predicted another class; from 4 on each class's probability, 0..255, in channel order."""

NO_TILE, NOTHING = -2, -1
"""In place of a model version: the level has no tile there; the level has a tile, but without a prediction."""

TileKey = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tile:
    """One predicted tile, uint8 (channels, TILE, TILE), with the versions of model and annotations."""

    data: np.ndarray
    model_version: int
    annotation_version: int


def encode(labels: np.ndarray, probabilities: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Pack a prediction into uint8 channels (see `LABELS` ...).

    Parameters
    ----------
    labels
        uint8 (h, w), class ids.
    probabilities
        float32 (K, h, w), summing to 1 over K.
    before
        Class ids of an older model there, 0 where it has none; None: there is no older model.
    """
    k = len(probabilities)
    out = np.empty((PROBABILITY + k, *labels.shape), np.uint8)
    out[LABELS] = labels
    out[UNCERTAINTY] = entropy(probabilities)
    out[MARGIN] = narrowness(probabilities)
    out[CHANGED] = 0 if before is None else np.where((before != labels) & (before > 0), 255, 0)
    out[PROBABILITY:] = np.clip(np.rint(probabilities * 255), 0, 255)
    return out


class TileStore:
    """Predicted tiles of one slide: written by one thread, read by any, bounded in bytes.

    Parameters
    ----------
    shape
        (h, w) of the slide in the prediction frame.
    channels
        Channels of a tile.
    budget
        Bytes of tiles to store; the least recently written are dropped first.
    """

    def __init__(self, shape: tuple[int, int], channels: int, budget: int = 256 << 20) -> None:
        self.shape, self.channels, self.budget = shape, channels, budget
        self.n_levels = 2  # napari cannot show a pyramid of one level
        while -(-max(shape) >> (self.n_levels - 1)) > COARSEST:
            self.n_levels += 1
        # napari derives a level's scale from the ratio of shapes: padding makes every ratio an exact power of two.
        pad = 1 << (self.n_levels - 1)
        h, w = (-(-n // pad) * pad for n in shape)
        self.shapes = [(h >> k, w >> k) for k in range(self.n_levels)]
        self.top = np.zeros((channels, *self.shapes[-1]), np.uint8)
        self.changes = 0
        """Counts what was stored."""
        self._tiles: OrderedDict[TileKey, Tile] = OrderedDict()
        self._top_versions: dict[TileKey, int] = {}
        # For each level, the model version shown in each tile-sized square of level 0: 4 bytes per 512 x 512 px.
        cells = (-(-h // TILE), -(-w // TILE))
        self._shown = [np.full(cells, NO_TILE, np.int32) for _ in range(self.n_levels - 1)]
        self._shown.append(np.full(cells, NOTHING, np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes held by tiles and the top level."""
        return self.top.nbytes + len(self._tiles) * self.channels * TILE * TILE

    def get(self, key: TileKey) -> Tile | None:
        """The tile (level, row, column), if it is stored."""
        return self._tiles.get(key)

    def model_version(self, key: TileKey) -> int:
        """Version of the model that predicted this tile; -1 where there is none."""
        if key[0] == self.n_levels - 1:
            return self._top_versions.get(key, -1)
        tile = self._tiles.get(key)
        return -1 if tile is None else tile.model_version

    def put(self, key: TileKey, tile: Tile, keep: frozenset[TileKey] = frozenset()) -> Box:
        """Store a tile, copy it into every coarser level, and drop the oldest beyond the budget except `keep`.

        Returns
        -------
        Box
            The changed area, in pixels of the prediction frame (level 0 of this pyramid).
        """
        level, i, j = key
        self.changes += 1
        if level == self.n_levels - 1:
            self._write_top(tile.data, Box(i * TILE, j * TILE, TILE, TILE))
            self._top_versions[key] = tile.model_version
        else:
            self._insert(key, tile)
            self._propagate(key, tile)
        for shown in self._shown[level:]:
            shown[_cells(key)] = tile.model_version
        self._fill_finer(key, tile)
        self._trim(keep)
        return Box(i * TILE << level, j * TILE << level, TILE << level, TILE << level)

    def clear(self) -> None:
        """Drop every tile."""
        self._tiles.clear()
        self._top_versions.clear()
        self.top[:] = 0
        for shown in self._shown:
            shown[:] = NO_TILE
        self._shown[-1][:] = NOTHING

    def shown_versions(self, level: int, cells: tuple[slice, slice]) -> np.ndarray:
        """int32: version of the model that `level` shows in each square of `TILE` level-0 pixels, or `NOTHING`."""
        versions: np.ndarray = self._shown[-1][cells].copy()
        for shown in reversed(self._shown[level:-1]):
            own = shown[cells]
            np.copyto(versions, own, where=own != NO_TILE)
        return versions

    def read(self, channel: int, level: int, region: Box) -> np.ndarray:
        """uint8 (h, w) of a region in pixels of `level`; 0 where nothing is stored. Never computes a prediction."""
        if level == self.n_levels - 1:
            whole: np.ndarray = self.top[channel][region.slices()]
            return whole.copy()
        out = np.zeros((region.height, region.width), np.uint8)
        for cell in tiles(region, TILE):
            part = cell.intersection(region)
            out[part.y - region.y : part.y1 - region.y, part.x - region.x : part.x1 - region.x] = self._part(
                channel, level, part
            )
        return out

    def _part(self, channel: int, level: int, part: Box) -> np.ndarray:
        for k in range(level, self.n_levels):
            s = k - level
            y0, x0 = part.y >> s, part.x >> s
            y1, x1 = ((part.y1 - 1) >> s) + 1, ((part.x1 - 1) >> s) + 1
            if k == self.n_levels - 1:
                source = self.top[channel, y0:y1, x0:x1]
            else:
                i, j = y0 // TILE, x0 // TILE
                tile = self._tiles.get((k, i, j))
                if tile is None:
                    continue
                source = tile.data[channel, y0 - i * TILE : y1 - i * TILE, x0 - j * TILE : x1 - j * TILE]
            up = source.repeat(1 << s, 0).repeat(1 << s, 1) if s else source
            oy, ox = part.y - (y0 << s), part.x - (x0 << s)
            return up[oy : oy + part.height, ox : ox + part.width]
        raise AssertionError("unreachable: the top level covers every region")

    def _insert(self, key: TileKey, tile: Tile) -> None:
        self._tiles[key] = tile
        self._tiles.move_to_end(key)

    def _propagate(self, key: TileKey, tile: Tile) -> None:
        level, i, j = key
        data = tile.data
        y, x, size = i * TILE, j * TILE, TILE
        for k in range(level + 1, self.n_levels):
            data = data[:, ::2, ::2]
            y, x, size = y >> 1, x >> 1, size >> 1
            if size == 0:
                return
            if k == self.n_levels - 1:
                self._write_top(data, Box(y, x, size, size))
                return
            parent_key = (k, y // TILE, x // TILE)
            parent = self._tiles.get(parent_key)
            merged = self._ancestor_data(parent_key) if parent is None else parent.data.copy()
            if parent is None:
                self._shown[k][_cells(parent_key)] = self.shown_versions(k, _cells(parent_key))
            merged[:, y % TILE : y % TILE + size, x % TILE : x % TILE + size] = data
            # A merged parent is not a coarse prediction: its version is -1 until a coarse pass replaces it.
            version = -1 if parent is None else parent.model_version
            self._insert(parent_key, Tile(merged, version, tile.annotation_version))

    def _fill_finer(self, key: TileKey, tile: Tile) -> None:
        """Copy a coarse tile into the stored finer ones where they show nothing or another model's prediction.

        Reading takes the finest tile there is, so one that was merged from a few full-resolution tiles would otherwise
        hide this answer everywhere else. Full-resolution tiles stay: they are predicted again, or dropped.
        """
        level, i, j = key
        for child in [c for c in self._tiles if 0 < c[0] < level and _ancestor(c, level) == key]:
            k, ci, cj = child
            own, side, s = self._shown[k][_cells(child)], TILE >> k, level - k
            outdated = own != tile.model_version
            if side == 0 or not outdated.any():
                continue
            y, x, size = (ci * TILE >> s) - i * TILE, (cj * TILE >> s) - j * TILE, TILE >> s
            coarse = tile.data[:, y : y + size, x : x + size].repeat(1 << s, 1).repeat(1 << s, 2)
            mask = outdated.repeat(side, 0).repeat(side, 1)
            h, w = mask.shape
            merged = self._tiles[child].data.copy()
            np.copyto(merged[:, :h, :w], coarse[:, :h, :w], where=mask)
            # replaced in place: it keeps its age; -1, as it is not a prediction at its own resolution any more
            self._tiles[child] = Tile(merged, -1, tile.annotation_version)
            own[outdated] = tile.model_version

    def _ancestor_data(self, key: TileKey) -> np.ndarray:
        level, i, j = key
        full = Box(i * TILE, j * TILE, TILE, TILE)
        inside = full.intersection(Box(0, 0, *self.shapes[level]))
        out = np.zeros((self.channels, TILE, TILE), np.uint8)
        for channel in range(self.channels):
            out[channel, : inside.height, : inside.width] = self.read(channel, level, inside)
        return out

    def _write_top(self, data: np.ndarray, region: Box) -> None:
        inside = region.intersection(Box(0, 0, *self.shapes[-1]))
        self.top[(slice(None), *inside.slices())] = data[:, : inside.height, : inside.width]

    def _trim(self, keep: frozenset[TileKey]) -> None:
        per_tile = self.channels * TILE * TILE
        excess = len(self._tiles) - max(1, (self.budget - self.top.nbytes) // per_tile)
        for key in list(self._tiles) if excess > 0 else ():
            if excess <= 0:
                return
            if key not in keep:
                del self._tiles[key]
                self._shown[key[0]][_cells(key)] = NO_TILE
                excess -= 1


def _ancestor(key: TileKey, level: int) -> TileKey:
    """The tile of a coarser level over a tile."""
    k, i, j = key
    return level, i >> (level - k), j >> (level - k)


def _cells(key: TileKey) -> tuple[slice, slice]:
    """The level-0 tiles under a tile."""
    level, i, j = key
    return slice(i << level, (i + 1) << level), slice(j << level, (j + 1) << level)


class CleanedTiles:
    """Class ids of a part of a slide in place of the tiles of a live prediction; 0 around it. For the GUI thread only.

    Parameters
    ----------
    store
        The tiles; the levels are the same.
    """

    def __init__(self, store: TileStore) -> None:
        self.shapes, self.n_levels = store.shapes, store.n_levels
        self.top = np.zeros((1, *self.shapes[-1]), np.uint8)
        """(1, h, w): the coarsest level."""
        self._labels, self._level, self._box = np.zeros((0, 0), np.uint8), 0, Box(0, 0, 0, 0)

    def put(self, labels: np.ndarray, level: int, box: Box) -> Box:
        """Take another part, uint8 (h, w) for a box of a level; gives the box of level 0 that has changed."""
        changed = [Box(*(v << n for v in b)) for b, n in ((box, level), (self._box, self._level)) if b.area]
        self._labels, self._level, self._box = labels, level, box
        self.top[0] = self.read(LABELS, self.n_levels - 1, Box(0, 0, *self.shapes[-1]))
        return changed[0].union(changed[-1])

    def read(self, channel: int, level: int, box: Box) -> np.ndarray:
        """Class ids, uint8 (h, w), of a box of a level: the nearest ones of the part's own level."""
        out, mine, step = np.zeros((box.height, box.width), np.uint8), self._box, level - self._level
        if step == 0:
            part = box.intersection(mine)
            source = Box(part.y - mine.y, part.x - mine.x, part.height, part.width)
            out[Box(part.y - box.y, part.x - box.x, part.height, part.width).slices()] = self._labels[source.slices()]
            return out
        rows, columns = (
            np.arange(a, b) << max(step, 0) >> max(-step, 0) for a, b in ((box.y, box.y1), (box.x, box.x1))
        )
        down = (rows >= mine.y) & (rows < mine.y1)
        across = (columns >= mine.x) & (columns < mine.x1)
        out[np.ix_(down, across)] = self._labels[np.ix_(rows[down] - mine.y, columns[across] - mine.x)]
        return out


class LiveLevel:
    """One channel of one level as an array-like for napari: lazy, uint8, 2-D; reading never computes."""

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, store: TileStore | CleanedTiles, channel: int, level: int) -> None:
        self._store, self._channel, self._level = store, channel, level
        self.shape = store.shapes[level]
        self.size = self.shape[0] * self.shape[1]
        self.chunks = (TILE, TILE)

    def __getitem__(self, key: object) -> np.ndarray:
        items = key if isinstance(key, tuple) else (key,)
        items = (*items, *(slice(None),) * (2 - len(items)))
        bounds: list[tuple[int, int]] = []
        steps: list[slice | int] = []
        for item, n in zip(items, self.shape, strict=True):
            if isinstance(item, slice):
                start, stop, step = item.indices(n)
                bounds.append((start, max(start, stop)))
                steps.append(slice(None, None, step))
            else:
                index = int(item) % n
                bounds.append((index, index + 1))
                steps.append(0)
        (y0, y1), (x0, x1) = bounds
        return self._store.read(self._channel, self._level, Box(y0, x0, y1 - y0, x1 - x0))[tuple(steps)]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if self.size > 4 * COARSEST * COARSEST:
            raise MemoryError(f"level {self._level} of the live prediction, {self.shape}, is too large to read whole")
        return self[:, :]


def live_levels(store: TileStore | CleanedTiles, channel: int) -> list[LiveLevel | np.ndarray]:
    """The levels of one channel for a multiscale layer; the coarsest is the live array itself, not a copy, because
    napari caches the array it reads.
    """
    levels: list[LiveLevel | np.ndarray] = [LiveLevel(store, channel, k) for k in range(store.n_levels - 1)]
    return [*levels, store.top[channel]]
