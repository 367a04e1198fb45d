"""Live prediction: the tiles of what is on screen, predicted on the engine thread, a few at a time.

The default network follows rectangles of tiles in strips, as it does over whole slides: of a tile that is computed with
its halo, 0.38 is kept. Other networks and coarse passes go tile by tile.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_sparseseg.errors import SlideChangedError
from napari_sparseseg.geometry import Box, Frame, tiles
from napari_sparseseg.prediction.strips import ROWS, AtOnce, InStrips, SlideStrip
from napari_sparseseg.prediction.tile_store import CHANGED, LABELS, PROBABILITY, TILE, Tile, TileKey, TileStore, encode
from napari_sparseseg.prediction.tiles import labels_from, predict_region

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from napari_sparseseg.prediction.tiles import Segmenter
    from napari_sparseseg.slides import Slide

QUICK_TILES = 4
"""A view of up to this many tiles is predicted at full resolution at once. For a wider one, where nothing is shown, a
coarse pass of no more tiles comes first, so that something is visible early."""
FINE_TILES = 16
"""For a wider view the coarse pass is repeated for every new model, because not all of the view will be refined."""
WIDEST = 5
"""Columns of tiles in one strip: a view of 1080p touches so many, and memory grows with them."""
MOST_TILES = 64
"""A view gets at most this many tiles; of a wider one the centre is refined and the remainder stays coarse."""


@dataclass(frozen=True, slots=True)
class View:
    """The visible level-0 box, and how many level-0 pixels one screen pixel covers."""

    box: Box
    pixel_size: float


def _by_distance(region: Box, level: int, store: TileStore) -> Iterator[TileKey]:
    """Tiles of a level that touch `region` (pixels of that level) and the slide, centre first."""
    cy, cx = region.y + region.height / 2, region.x + region.width / 2
    inside = region.intersection(Box(0, 0, *store.shapes[level]))
    if not inside.area:
        return
    cells = sorted(tiles(inside, TILE), key=lambda c: (c.y + TILE / 2 - cy) ** 2 + (c.x + TILE / 2 - cx) ** 2)
    for cell in cells:
        yield level, cell.y // TILE, cell.x // TILE


def plan(view: View, frame: Frame, store: TileStore) -> list[TileKey]:
    """The tiles of a view in the order to predict them: a coarse pass where it is wide, then from the centre outwards,
    then a margin of one tile.

    There are at most `MOST_TILES` full-resolution tiles, so that a view of the whole slide ends too.
    """
    region = frame.cover(view.box).intersection(Box(0, 0, *store.shape))
    if not region.area:
        return []
    fine = list(itertools.islice(_by_distance(region, 0, store), MOST_TILES))
    margin: list[TileKey] = []
    if len(fine) <= FINE_TILES:
        margin = [key for key in _by_distance(region.grown(TILE), 0, store) if key not in set(fine)]
    coarse = _coarse(region, store) if len(fine) > QUICK_TILES else []
    return coarse + fine + (margin if len(margin) <= FINE_TILES else [])


def _coarse(region: Box, store: TileStore) -> list[TileKey]:
    """The tiles of the finest level that covers a region (level-0 pixels of the pyramid) with `QUICK_TILES`."""
    keys: list[TileKey] = []
    for level in range(1, store.n_levels):
        at = Box(region.y >> level, region.x >> level, -(-region.height >> level), -(-region.width >> level))
        keys = list(_by_distance(at, level, store))
        if len(keys) <= QUICK_TILES:
            break
    return keys


def rectangle(missing: Set[tuple[int, int]], at: tuple[int, int]) -> Box:
    """Missing tiles (row, column) around one of them, in tiles: up to `WIDEST` columns, and rows that are complete."""
    (top, left), (bottom, right) = at, (at[0] + 1, at[1] + 1)
    grown = -1
    while grown < right - left < WIDEST:
        grown = right - left
        right += (at[0], right) in missing
        left -= right - left < WIDEST and (at[0], left - 1) in missing
    while all((top - 1, j) in missing for j in range(left, right)):
        top -= 1
    while all((bottom, j) in missing for j in range(left, right)):
        bottom += 1
    return Box(top, left, bottom - top, right - left)


class LiveView:
    """The live prediction of one slide.

    Attributes
    ----------
    updated
        Signal (Box in prediction-frame pixels) of what changed. Emitted on the engine thread.
    """

    updated = Signal(Box)

    def __init__(self, slide: Slide, frame: Frame, n_classes: int) -> None:
        self.slide, self.frame = slide, frame
        self.store = TileStore(frame.shape(slide.shape), PROBABILITY + n_classes)
        self._view: View | None = None
        self._planned: tuple[View | None, int] = (None, -1)
        self._queue: list[TileKey] = []
        self._wanted: frozenset[TileKey] = frozenset()
        self._strip: Iterator[dict[TileKey, np.ndarray]] | None = None

    def part(self, box: Box, most_pixels: int) -> tuple[int, Box]:
        """The finest level that covers a level-0 box with about `most_pixels` at most, and the box in its pixels."""
        region = self.frame.cover(box).intersection(Box(0, 0, *self.store.shape))
        level = 0
        while level < self.store.n_levels - 1 and region.area >> (2 * level) > most_pixels:
            level += 1
        y, x = region.y >> level, region.x >> level
        return level, Box(y, x, -(-region.y1 >> level) - y, -(-region.x1 >> level) - x)

    @property
    def view(self) -> View | None:
        """The last requested view."""
        return self._view

    @property
    def pending(self) -> int:
        """Tiles still to predict for the current view and model; 0 when idle."""
        return len(self._queue)

    @property
    def planned(self) -> int:
        """Tiles of the current view and model, those that are there already included."""
        return len(self._wanted)

    @property
    def rough(self) -> bool:
        """Whether only the middle of the current view, which is very wide, is predicted at full resolution."""
        return sum(level == 0 for level, _, _ in self._wanted) >= MOST_TILES

    def request(self, box: Box, pixel_size: float) -> None:
        """Set the visible level-0 box and the level-0 pixels per screen pixel, from any thread."""
        self._view = View(Box(*box), pixel_size)

    def work(self, model: Segmenter, model_version: int, annotation_version: int) -> bool:
        """Predict the next tiles of the view, on the engine thread; False when there are none."""
        view = self._view
        if view is None:
            return False
        if self._planned != (view, model_version):
            wanted = plan(view, self.frame, self.store)
            wide = sum(key[0] == 0 for key in wanted) > 2 * FINE_TILES
            self._queue = [
                key
                for key in wanted
                if self.store.model_version(key) != model_version and (wide or not self._is_shown(key))
            ]
            self._wanted, self._strip = frozenset(wanted), None
            self._planned = (view, model_version)
        if not self._queue:
            return False
        done = {self._queue[0]}
        try:
            answers = self._answers(model, view)
            done = set(answers)
            for key, probabilities in answers.items():
                tile = self._tile(key, probabilities, model, model_version, annotation_version)
                self.updated.emit(self.store.put(key, tile, self._wanted))
        except SlideChangedError:
            self._queue.clear()  # reported once, not once a tile
            raise
        finally:
            # only now: `pending` counts them until they are in the store
            self._queue = [key for key in self._queue if key not in done]
            if not self._queue:
                self._strip = None
        return True

    def _answers(self, model: Segmenter, view: View) -> dict[TileKey, np.ndarray]:
        """Probabilities of the next tile, or of a row of tiles in a strip; nothing while the row is not complete."""
        following, self._strip = self._strip, None  # a strip that failed is not followed any further
        answers = None if following is None else next(following, None)
        level, *at = self._queue[0]
        if answers is None and level == 0 and isinstance(model, InStrips):
            following = self._follow(model, self._rectangle(view, (at[0], at[1])))
            answers = next(following, None)
        if answers is not None:
            self._strip = following
            return answers
        return {self._queue[0]: self._alone(self._queue[0], model)}

    def _rectangle(self, view: View, at: tuple[int, int]) -> Box:
        """Missing tiles around a missing one, in tiles: those on screen, or of the margin."""
        region = self.frame.cover(view.box)

        def seen(i: int, j: int) -> bool:
            return Box(i * TILE, j * TILE, TILE, TILE).intersection(region).area > 0

        missing = {(i, j) for level, i, j in self._queue if level == 0 and seen(i, j) == seen(*at)}
        return rectangle(missing, at)

    def _follow(self, model: InStrips, cells: Box) -> Iterator[dict[TileKey, np.ndarray]]:
        """Rows of tiles of a rectangle, from its top, each in a few turns; none where the model wants tiles."""
        height, width = self.store.shape
        first, last = cells.x * TILE, min(cells.x1 * TILE, width)
        strip = SlideStrip(self.slide, model, self.frame, (first, last), AtOnce(), lambda _: None)
        if not strip.fits:
            return
        for i in range(cells.y, cells.y1):
            top, bottom = i * TILE, min((i + 1) * TILE, height)
            strip.plan(top, bottom)
            parts = [strip.probabilities(top, min(top + ROWS, bottom))]
            for y in range(top + ROWS, bottom, ROWS):
                yield {}  # what is more urgent goes first
                parts.append(strip.probabilities(y, min(y + ROWS, bottom)))
            found = np.concatenate(parts, axis=1)
            yield {(0, i, j): found[:, :, j * TILE - first :][:, :, :TILE] for j in range(cells.x, cells.x1)}

    def _is_shown(self, key: TileKey) -> bool:
        """Whether the view already shows at least as much as a coarse tile would."""
        level, region = key[0], self._inside(key)
        return level > 0 and bool(self.store.read(LABELS, level, region)[:: TILE // 8, :: TILE // 8].all())

    def _alone(self, key: TileKey, model: Segmenter) -> np.ndarray:
        """Probabilities of one tile, by a pass of its own."""
        dy, dx = self.frame.downsample
        coarse = Frame((dy * (1 << key[0]), dx * (1 << key[0])))
        # The coarse pass shows the model a coarser slide than it was trained on (no `read_frame`). It gives a first
        # answer on a wide view; at the training resolution it would take 4^level times as long.
        return predict_region(model, self.slide, self._inside(key), coarse)[1]

    def _inside(self, key: TileKey) -> Box:
        """What of a tile lies on the slide."""
        level, i, j = key
        return Box(i * TILE, j * TILE, TILE, TILE).intersection(Box(0, 0, *self.store.shapes[level]))

    def _tile(
        self, key: TileKey, probabilities: np.ndarray, model: Segmenter, model_version: int, annotation_version: int
    ) -> Tile:
        level, inside = key[0], self._inside(key)
        labels = labels_from(probabilities, model.metadata.classes)
        packed = encode(labels, probabilities, self._before(key, inside, model_version))
        if level == 0 and self._coarse_version(key) == model_version and self.store.model_version(key) < 0:
            packed[CHANGED] = self.store.read(CHANGED, 0, inside)
        data = np.zeros((self.store.channels, TILE, TILE), np.uint8)
        data[:, : inside.height, : inside.width] = packed
        if level:
            self._copy_finer(key, data, model_version)
        return Tile(data, model_version, annotation_version)

    def _before(self, key: TileKey, inside: Box, model_version: int) -> np.ndarray | None:
        """Labels of an older model in a tile, or None where only this model has predicted.

        A coarse pass of this model must not be compared with as if it came from an older one: it differs from the
        full-resolution prediction at every border.
        """
        shown = self._coarse_version(key) if self.store.model_version(key) < 0 else self.store.model_version(key)
        return None if shown == model_version else self.store.read(LABELS, key[0], inside)

    def _coarse_version(self, key: TileKey) -> int:
        """Version of the model whose coarse pass is shown where a tile is missing; -1 where there was none."""
        level, i, j = key
        above = ((k, i >> (k - level), j >> (k - level)) for k in range(level + 1, self.store.n_levels))
        return next((v for v in map(self.store.model_version, above) if v >= 0), -1)

    def _copy_finer(self, key: TileKey, data: np.ndarray, model_version: int) -> None:
        """Copy existing full-resolution tiles of this model into a coarse one, which must not replace them."""
        level, i, j = key
        side = TILE >> level
        if side == 0:
            return
        for di, dj in itertools.product(range(1 << level), repeat=2):
            fine = self.store.get((0, (i << level) + di, (j << level) + dj))
            if fine is not None and fine.model_version == model_version:
                step = 1 << level
                cell = (slice(None), slice(di * side, (di + 1) * side), slice(dj * side, (dj + 1) * side))
                data[cell] = fine.data[:, ::step, ::step]
