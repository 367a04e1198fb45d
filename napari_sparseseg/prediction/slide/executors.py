"""Where shards are predicted: threads of this process, or the workers of a dask.distributed cluster."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.prediction.results.cleanup import cores
from napari_sparseseg.prediction.slide.shards import close_task, run_shard
from napari_sparseseg.prediction.tiles import PredictionStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from napari_sparseseg.geometry import Box
    from napari_sparseseg.prediction.slide.shards import Control, ShardPredictor, ShardTask
    from napari_sparseseg.prediction.tiles import Segmenter

_POLL_S = 0.5
_WORKER_BYTES = 1_000_000_000
_FREE_SHARE = 0.25


def default_workers(device: str, cores: int, threads: int, memory_bytes: float) -> int:
    """Number of threads that predict when the user names none.

    Parameters
    ----------
    device
        ``cpu`` or a GPU such as ``cuda:0``; a second worker would only compete for a GPU.
    cores
        Cores that this process may use.
    threads
        Threads inside torch's operators.
    memory_bytes
        What all of them may take, 1 GB each; there is one in any case.
    """
    if not device.startswith("cpu"):
        return 1
    return max(1, min(cores // threads, int(memory_bytes / _WORKER_BYTES)))


def workers_here(model: Segmenter, memory_gb: float | None = None) -> int:
    """`default_workers` for a model and this process, in `memory_gb` or in a quarter of the memory that is free now."""
    import psutil
    import torch

    device = str(getattr(model, "device", "cpu"))
    memory = psutil.virtual_memory().available * _FREE_SHARE if memory_gb is None else memory_gb * 1e9
    return default_workers(device, cores(), torch.get_num_threads(), memory)


def run_in_threads(
    predictors: Sequence[ShardPredictor],
    shards: Sequence[tuple[int, Box]],
    control: Control,
    on_shard: Callable[[int], None],
    on_pixels: Callable[[int], None],
) -> None:
    """Predict shards with one thread per predictor; both callbacks run on the calling thread.

    Raises
    ------
    PredictionStopped
        When asked to stop.
    SparseSegError
        The first error of any thread; the others end after their tile.
    """
    unclaimed = _Unclaimed(shards)
    events: queue.SimpleQueue[tuple[Callable[[int], None], int] | None] = queue.SimpleQueue()

    def work(predictor: ShardPredictor) -> None:
        try:
            for index in predictor.run(unclaimed.claims(), control, lambda pixels: events.put((on_pixels, pixels))):
                events.put((on_shard, index))
        except BaseException:
            control.abort.set()
            raise
        finally:
            events.put(None)

    with ThreadPoolExecutor(len(predictors), thread_name_prefix="predict") as pool:
        futures = [pool.submit(work, predictor) for predictor in predictors]
        try:
            for _ in futures:
                for callback, value in iter(events.get, None):
                    callback(value)
        except BaseException:
            control.abort.set()
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, PredictionStopped)):
        raise error


class _Unclaimed:
    """Shards that no thread has taken. A thread gets the one below its last, whose feature rows it has already."""

    def __init__(self, shards: Sequence[tuple[int, Box]]) -> None:
        self._left = {(box.x, box.y): (index, box) for index, box in shards}
        self._working: set[tuple[int, int]] = set()
        """Where the shards below those in progress begin."""
        self._lock = threading.Lock()

    def claims(self) -> Iterator[tuple[int, Box]]:
        """Shards for one thread."""
        below = None
        while True:
            with self._lock:
                self._working.discard(below)
                if not self._left:
                    return
                index, box = self._left.pop(below if below in self._left else self._start())
                below = box.x, box.y1
                self._working.add(below)
            yield index, box

    def _start(self) -> tuple[int, int]:
        """The top of the longest column of shards; its middle where another thread comes down to the top."""
        columns: list[list[tuple[int, int]]] = []
        for x, y in sorted(self._left):
            if columns and columns[-1][-1][0] == x and self._left[columns[-1][-1]][1].y1 == y:
                columns[-1].append((x, y))
            else:
                columns.append([(x, y)])
        longest = max(columns, key=lambda c: len(c) - (len(c) + 1) // 2 * (c[0] in self._working))
        return longest[len(longest) // 2 if longest[0] in self._working else 0]


def run_on_cluster(
    scheduler: str, task: ShardTask, shards: Sequence[int], control: Control, on_shard: Callable[[int], None]
) -> None:
    """Predict shards on the workers that the scheduler has, or gets later.

    Workers open slide, model and store themselves, so these must be readable by every worker under the same path. Only
    shard numbers travel. When a worker dies the scheduler gives its shards to another.

    Raises
    ------
    PredictionStopped
        When asked to stop; shards in progress are cancelled.
    PredictionError
        Where dask.distributed is not installed, the scheduler does not answer, or a shard fails.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise PredictionError(
            "a scheduler was given, but dask.distributed is not installed; pip install 'napari-sparseseg[distributed]'."
        ) from error
    try:
        client = Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PredictionError(f"no dask scheduler answers at {scheduler}: {error}. Check the address.") from error
    with client, client.as_current():
        try:
            _drive(client, task, deque(shards), control, on_shard)
        finally:
            if client.status == "running":
                client.run(close_task, on_error="ignore")


def _drive(
    client: Any, task: ShardTask, waiting: deque[int], control: Control, on_shard: Callable[[int], None]
) -> None:
    """Submit two shards per worker thread at a time, so that a cancelled run leaves little behind."""
    from distributed import TimeoutError as DistributedTimeout
    from distributed import wait

    submitted: set[Any] = set()
    try:
        while waiting or submitted:
            control.check()
            window = 2 * max(1, sum(client.nthreads().values()))
            while waiting and len(submitted) < window:
                submitted.add(client.submit(run_shard, task, waiting.popleft(), pure=False))
            try:
                finished, submitted = wait(submitted, timeout=_POLL_S, return_when="FIRST_COMPLETED")
            except DistributedTimeout:
                continue
            for future in finished:
                if (error := future.exception()) is not None:
                    raise PredictionError(f"a worker of the cluster failed: {type(error).__name__}: {error}") from error
                on_shard(future.result())
    finally:
        client.cancel(list(submitted))
