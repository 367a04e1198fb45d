"""Shards by threads of this process."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from napari_sparseseg.geometry import Box
    from napari_sparseseg.prediction.slide.shards import Control, ShardPredictor


class _Claims:
    """An iterator that several threads may share."""

    def __init__(self, shards: Sequence[tuple[int, Box]]) -> None:
        self._shards = iter(shards)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, Box]]:
        return self

    def __next__(self) -> tuple[int, Box]:
        with self._lock:
            return next(self._shards)


def run_in_threads(
    predictors: Sequence[ShardPredictor],
    shards: Sequence[tuple[int, Box]],
    control: Control,
    on_shard: Callable[[int], None],
    on_pixels: Callable[[int], None],
) -> None:
    """Predict shards with one thread per predictor; both callbacks come on the calling thread.

    Raises
    ------
    PredictionStopped
        When asked to stop.
    SparseSegError
        The first error of any thread; the others end after their tile.
    """
    claims = _Claims(shards)
    events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def work(predictor: ShardPredictor) -> None:
        try:
            for index in predictor.run(claims, control, lambda n: events.put(("pixels", n))):
                events.put(("shard", index))
        except BaseException:
            control.abort.set()
            raise
        finally:
            events.put(("end", 0))

    with ThreadPoolExecutor(len(predictors), thread_name_prefix="predict") as pool:
        futures = [pool.submit(work, predictor) for predictor in predictors]
        try:
            _serve(events, len(futures), on_shard, on_pixels)
        except BaseException:
            control.abort.set()
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, PredictionStopped)):
        raise error


def _serve(
    events: queue.SimpleQueue[tuple[str, int]],
    running: int,
    on_shard: Callable[[int], None],
    on_pixels: Callable[[int], None],
) -> None:
    """Pass events on until all threads have ended."""
    while running:
        kind, value = events.get()
        if kind == "shard":
            on_shard(value)
        elif kind == "pixels":
            on_pixels(value)
        else:
            running -= 1
