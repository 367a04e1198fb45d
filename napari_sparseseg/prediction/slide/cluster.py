"""Shards by the workers of a dask.distributed cluster.

Workers open slide, model and store themselves, so these must lie where every worker can read them under the same path.
Only shard numbers travel. A worker that dies costs its shard: the scheduler gives it to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.prediction.slide.shards import close_task, run_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.prediction.slide.shards import Control, ShardTask

_POLL_S = 0.5
_CONNECT_S = 20


def run_on_cluster(
    scheduler: str, task: ShardTask, indices: Sequence[int], control: Control, on_shard: Callable[[int], None]
) -> None:
    """Predict shards on the workers that the scheduler has, or will have.

    Raises
    ------
    PredictionStopped
        When asked to stop; shards under way are cancelled.
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
        client = Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PredictionError(f"no dask scheduler answers at {scheduler}: {error}. Check the address.") from error
    with client, client.as_current():
        try:
            _drive(client, task, list(indices), control, on_shard)
        finally:
            if client.status == "running":
                client.run(close_task, on_error="ignore")


def _drive(client: Any, task: ShardTask, waiting: list[int], control: Control, on_shard: Callable[[int], None]) -> None:
    """Keep two shards per worker thread in flight, so that a cancelled run leaves little behind."""
    from distributed import TimeoutError as DistributedTimeout
    from distributed import wait

    waiting.reverse()
    flying: set[Any] = set()
    try:
        while waiting or flying:
            control.check()
            window = 2 * max(1, sum(client.nthreads().values()))
            while waiting and len(flying) < window:
                flying.add(client.submit(run_shard, task, waiting.pop(), pure=False))
            try:
                flying = _collect(wait(flying, timeout=_POLL_S, return_when="FIRST_COMPLETED"), on_shard)
            except DistributedTimeout:
                continue
    finally:
        client.cancel(list(flying))


def _collect(finished: Any, on_shard: Callable[[int], None]) -> set[Any]:
    """Report what is done; returns what is not."""
    for future in finished.done:
        error = future.exception()
        if error is not None:
            raise PredictionError(f"a worker of the cluster failed: {type(error).__name__}: {error}") from error
        on_shard(future.result())
    return set(finished.not_done)
