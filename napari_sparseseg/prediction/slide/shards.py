"""Prediction of shards: the part of a run that any thread, process or machine can do.

A shard is a 2,048-px block of the label image, stored whole by one task. The default network follows it in strips,
which go on from shard to shard; any other network gets tiles with halo. While the network works on one piece the next
one is read, across shards too, so that the network does not wait for the disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.errors import PredictionError, SlideChangedError, SparseSegError
from napari_sparseseg.geometry import Box, Frame, tiles
from napari_sparseseg.io.ome_zarr import SHARD, PredictionStore
from napari_sparseseg.prediction.results.regions import RegionMask
from napari_sparseseg.prediction.strips import ROWS, InStrips, SlideStrip, strips_through
from napari_sparseseg.prediction.tiles import (
    PredictionStopped,
    Segmenter,
    TileView,
    entropy,
    input_region,
    labels_from,
    predict_pixels,
)
from napari_sparseseg.prediction.tissue import TissueMask, glass_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from napari_sparseseg.slides import Slide

READ_CACHE = 16 << 20
"""Bytes of decoded slide to cache in a run: the last tile with its halo, of which the next one shares a third.
See D31."""
_READ_AHEAD = 2
# Largest side of a network input, halo included: the default network's tensors then take 140 MB at most, and a run with
# all that torch needs (0.6 GB) stays under 1 GB.
_INPUT_SIDE = 1088
_SMALLEST_TILE = 16


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How the label image is cut into tiles, and at which resolution the model sees them."""

    frame: Frame
    """Of the label image."""
    read_frame: Frame
    """Of what the model sees."""
    side: int
    """Of a tile of the label image in pixels, without halo."""
    flips: bool = False
    """Whether to average over the eight flips and quarter turns of each tile."""
    strips: bool = False
    """Whether to go in strips instead of tiles, if the model can."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Everything a worker needs to predict shards of one run, as plain values that can be sent to another machine."""

    slide: str
    fingerprint: str
    """Of the slide when the run began."""
    mpp: tuple[float, float] | None
    model: str
    store: str
    plan: TilePlan
    tissue: str | None
    """File with the mask of where to predict; None: everywhere."""
    image: int | None = None
    crop: bool = True
    """How the slide was opened, as for `open_slide`."""
    regions: str | None = None
    """File with the regions to predict; None: everywhere."""


@dataclass(frozen=True, slots=True)
class Control:
    """Asks a run to end."""

    stop: threading.Event | None = None
    abort: threading.Event = field(default_factory=threading.Event)
    """Set when another part of the run has failed."""

    @property
    def is_stopped(self) -> bool:
        """Whether the run is to end."""
        return self.abort.is_set() or (self.stop is not None and self.stop.is_set())

    def check(self) -> None:
        """Do nothing, unless the run is to end.

        Raises
        ------
        PredictionStopped
            When the run is to end.
        """
        if self.is_stopped:
            raise PredictionStopped("the prediction was stopped.")


def _nothing() -> None:
    """Where nothing need be cancelled."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a shard that is predicted at once."""

    index: int
    shard: Box
    tile: Box
    view: TileView
    answer: Callable[[], np.ndarray] | None
    """Gives the probabilities of what `view` needs; None where there is nothing to predict."""
    area: int
    """Pixels of the shard that are done with this piece."""
    first: bool
    last: bool
    cancel: Callable[[], object] = _nothing
    """Called where the piece is not wanted any more."""


@dataclass(frozen=True, slots=True)
class _Filled:
    """A shard that is being filled, uint8: class ids (h, w), entropy (h, w) and probabilities (K, h, w) if stored."""

    labels: np.ndarray
    uncertainty: np.ndarray | None = None
    probabilities: np.ndarray | None = None


class ShardPredictor:
    """Predicts shards of one slide into one store; use one per thread.

    Parameters
    ----------
    slide, model, store
        Open handles; slide and model may be shared between threads.
    plan
        Resolutions and tiles.
    tissue
        Where to predict; the rest gets the class given by `glass_label`. None: everywhere.
    regions
        Where to predict at all; the rest stays 0. None: everywhere.
    """

    def __init__(
        self,
        slide: Slide,
        model: Segmenter,
        store: PredictionStore,
        plan: TilePlan,
        tissue: TissueMask | None = None,
        regions: RegionMask | None = None,
    ) -> None:
        self._slide, self._model, self._store = slide, model, store
        self._plan, self._tissue, self._regions = plan, tissue, regions
        self._glass = 0 if tissue is None else glass_label(model.metadata.classes)
        self.waited = 0.0
        """Seconds that the network waited for pixels and for the store."""

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the label image."""
        return self._store.shape

    def run(
        self, shards: Iterable[tuple[int, Box]], control: Control, on_pixels: Callable[[int], None]
    ) -> Iterator[int]:
        """Predict and store shards; yields the index of each that is stored.

        Raises
        ------
        PredictionStopped
            When asked to; the shard in progress is then not stored.
        """
        filled = _Filled(np.zeros((0, 0), np.uint8))
        writing: tuple[int, Future[None]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            for piece in self._pieces(shards, reader):
                if writing is not None and control.is_stopped:
                    yield self._written(*writing)  # a resumed run need not predict this shard again
                    writing = None
                control.check()
                if piece.first:
                    filled = self._begun(piece.shard)
                if piece.answer is not None:
                    self._predict(piece, piece.answer(), filled)
                on_pixels(piece.area)
                if writing is not None:
                    yield self._written(*writing)
                    writing = None
                if piece.last:
                    writing = (
                        piece.index,
                        reader.submit(
                            self._store.write, piece.shard, filled.labels, filled.uncertainty, filled.probabilities
                        ),
                    )
            if writing is not None:
                yield self._written(*writing)

    def _written(self, index: int, write: Future[None]) -> int:
        begun = time.perf_counter()
        write.result()
        self.waited += time.perf_counter() - begun
        return index

    def _pieces(self, shards: Iterable[tuple[int, Box]], reader: ThreadPoolExecutor) -> Iterator[_Piece]:
        """Tiles in order, read ahead of their use."""
        waiting: deque[_Piece] = deque()
        try:
            for piece in self._planned(shards, reader):
                waiting.append(piece)
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for piece in waiting:
                piece.cancel()

    def _planned(self, shards: Iterable[tuple[int, Box]], reader: ThreadPoolExecutor) -> Iterator[_Piece]:
        whole, strip = Box(0, 0, *self._store.shape), None
        in_strips = self._plan.strips and isinstance(self._model, InStrips)
        if in_strips:
            in_strips = self._new_strip((0, 1), reader).fits
        for index, box in shards:
            shard = box.intersection(whole)
            if not in_strips:
                yield from self._in_tiles(index, shard, reader)
                continue
            ratio = self._plan.frame.downsample[1] / self._plan.read_frame.downsample[1]
            boxes = [
                Box(y, run.x, ROWS, run.width).intersection(run)
                for run in strips_through(shard, self._is_wanted, ratio)
                for y in range(run.y, run.y1, ROWS)
            ]
            views = [TileView(self._plan.frame, self._plan.read_frame, tile) for tile in boxes]
            rest = shard.area - sum(tile.area for tile in boxes)
            if not boxes:
                yield _Piece(
                    index, shard, shard, TileView(self._plan.frame, self._plan.frame, shard), None, rest, True, True
                )
            for k, (tile, view) in enumerate(zip(boxes, views, strict=True)):
                needed = view.needed
                columns = needed.x, needed.x1
                if strip is None or strip.columns != columns or not needed.y <= strip.stop <= needed.y1:
                    strip = self._new_strip(columns, reader)
                strip.plan(needed.y, needed.y1)
                answer = partial(strip.probabilities, needed.y, needed.y1)
                first, last = k == 0, k == len(boxes) - 1
                yield _Piece(index, shard, tile, view, answer, tile.area + first * rest, first, last, strip.close)

    def _in_tiles(self, index: int, shard: Box, reader: ThreadPoolExecutor) -> Iterator[_Piece]:
        cells = list(_cells(shard, self._plan.side))
        for number, tile in enumerate(cells, 1):
            view, answer = TileView(self._plan.frame, self._plan.read_frame, tile), None
            cancel: Callable[[], object] = _nothing
            if self._is_wanted(tile):
                source, mirrored = input_region(self._model, view.needed), self._model.metadata.rules.mirrored
                pixels = reader.submit(self._slide.read_region, source, self._plan.read_frame, mirrored=mirrored)
                answer, cancel = partial(self._tile, pixels, source, view.needed), pixels.cancel
            yield _Piece(index, shard, tile, view, answer, tile.area, number == 1, number == len(cells), cancel)

    def _tile(self, pixels: Future[np.ndarray], source: Box, needed: Box) -> np.ndarray:
        begun = time.perf_counter()
        found = pixels.result()
        self._wait(time.perf_counter() - begun)
        predict = predict_flipped if self._plan.flips else predict_pixels
        return predict(self._model, found, source, needed)

    def _new_strip(self, columns: tuple[int, int], reader: ThreadPoolExecutor) -> SlideStrip:
        assert isinstance(self._model, InStrips)
        return SlideStrip(self._slide, self._model, self._plan.read_frame, columns, reader, self._wait)

    def _is_wanted(self, tile: Box) -> bool:
        """Whether anything is to be predicted in a box of the label image."""
        frame = self._plan.frame
        return all(mask is None or mask.overlaps(tile, frame) for mask in (self._regions, self._tissue))

    def _wait(self, seconds: float) -> None:
        self.waited += seconds

    def _begun(self, shard: Box) -> _Filled:
        """A shard before anything is predicted: glass, and 0 outside the regions."""
        labels = np.full((shard.height, shard.width), self._glass, np.uint8)
        if self._regions is not None and self._glass:
            labels[~self._regions.read_region(shard, self._plan.frame)] = 0
        doubt = np.zeros_like(labels) if self._store.uncertainty else None
        classes = self._model.metadata.classes
        maps = None
        if self._store.probabilities:
            # glass that is not predicted is as sure as its label
            ids = np.array([c.id for c in classes], np.uint8)[:, None, None]
            maps = np.where((ids == labels) & (labels > 0), np.uint8(255), np.uint8(0))
        return _Filled(labels, doubt, maps)

    def _predict(self, piece: _Piece, answer: np.ndarray, filled: _Filled) -> None:
        """Fill the piece's part of the shard; with a tissue mask, only its tissue."""
        probabilities = piece.view.resampled(answer)
        shape = (piece.tile.height, piece.tile.width)
        wanted = np.ones(shape, bool)
        for mask in (self._tissue, self._regions):
            if mask is not None:
                wanted &= mask.read_region(piece.tile, self._plan.frame)
        target = Box(piece.tile.y - piece.shard.y, piece.tile.x - piece.shard.x, *shape).slices()
        np.copyto(filled.labels[target], labels_from(probabilities, self._model.metadata.classes), where=wanted)
        if filled.uncertainty is not None:
            np.copyto(filled.uncertainty[target], entropy(probabilities), where=wanted)
        if filled.probabilities is not None:
            for plane, stored in zip(probabilities, filled.probabilities, strict=True):
                np.copyto(stored[target], np.rint(plane * 255).astype(np.uint8), where=wanted)


def predict_flipped(model: Segmenter, pixels: np.ndarray, source: Box, tile: Box) -> np.ndarray:
    """As `predict_pixels`, averaged over the eight flips and quarter turns of the input (test-time augmentation)."""
    total = np.zeros((len(model.metadata.classes), tile.height, tile.width), np.float32)
    y, x = tile.y - source.y, tile.x - source.x
    for turns in range(4):
        for flip in (False, True):
            turned = np.rot90(pixels, turns)
            turned = turned[:, ::-1] if flip else turned
            found = model.probabilities(np.ascontiguousarray(turned), origin=(0, 0))
            found = found[:, :, ::-1] if flip else found
            total += np.rot90(found, -turns, axes=(1, 2))[:, y : y + tile.height, x : x + tile.width]
    return total / 8


def _cells(shard: Box, side: int) -> Iterator[Box]:
    """The shard cut into tiles from its own corner, row by row; the last ones are smaller."""
    for y in range(shard.y, shard.y1, side):
        for x in range(shard.x, shard.x1, side):
            yield Box(y, x, side, side).intersection(shard)


def default_tile(model: Segmenter) -> int:
    """Side of a tile: an even part of a shard such that tile and halo fit into `_INPUT_SIDE`."""
    for parts in range(1, 8):
        part = -(-SHARD // (parts * model.size_divisor)) * model.size_divisor
        if part + 2 * model.halo <= _INPUT_SIDE:
            return part
    return SHARD // 8


def fitting_tile(model: Segmenter, frame: Frame, read_frame: Frame) -> int:
    """The default tile in pixels of the label image, where the model sees the slide in `read_frame`."""
    ratio = max(a / b for a, b in zip(frame.downsample, read_frame.downsample, strict=True))
    tile = default_tile(model)
    return tile if ratio <= 1 else max(_SMALLEST_TILE, int(tile / ratio))


def shard_grid(shape: tuple[int, int]) -> list[Box]:
    """Shards of a label image, row by row; those at the border extend beyond it."""
    return list(tiles(Box(0, 0, *shape), SHARD))


_opened: dict[ShardTask, ShardPredictor] = {}
_opening = threading.Lock()


def open_task(task: ShardTask) -> ShardPredictor:
    """Open slide, model and store in a worker process."""
    from napari_sparseseg.learning.model import load_model
    from napari_sparseseg.learning.torch_runtime import tune_process
    from napari_sparseseg.slides import open_slide
    from napari_sparseseg.slides.cache import TILES

    tune_process(predicting=True)
    TILES.max_bytes = READ_CACHE
    slide = open_slide(task.slide, image=task.image, crop=task.crop)
    if slide.fingerprint != task.fingerprint:
        slide.close()
        raise SlideChangedError(task.slide)
    if task.mpp is not None:
        slide.mpp = task.mpp
    model = load_model(Path(task.model), device="auto")
    tissue = None if task.tissue is None else TissueMask.load(Path(task.tissue))
    regions = None if task.regions is None else RegionMask.load(Path(task.regions))
    return ShardPredictor(slide, model, PredictionStore(Path(task.store)), task.plan, tissue, regions)


def run_shard(task: ShardTask, index: int) -> int:
    """Predict one shard in a worker process of a cluster; handles stay open for the next shard of the same run.

    Raises
    ------
    PredictionError
        For any user-facing error, as text alone: the other error classes cannot be unpickled.
    """
    try:
        with _opening:
            if task not in _opened:
                _opened.clear()
                _opened[task] = open_task(task)
            predictor = _opened[task]
        shard = (index, shard_grid(predictor.shape)[index])
        return next(predictor.run([shard], Control(), lambda _: None))
    except SparseSegError as error:
        raise PredictionError(str(error)) from None


def close_task() -> None:
    """Close what `run_shard` left open in this process."""
    with _opening:
        _opened.clear()
