"""Strips of a slide: where they run through a shard, and their pixels, read ahead."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np

from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.tiles import Segmenter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.slides import Slide

P = ParamSpec("P")
T = TypeVar("T")
CELL = 256
"""Side of the squares of the label image that are looked at for tissue."""
ROWS = 128
"""Rows of the label image that a strip answers at once."""
_WIDEST = 2304
"""Columns that the model sees at once; memory grows with them."""
_CHUNK = 128
"""Rows that are read at once."""
_MARGIN = 1.1
"""Cells around a strip that are computed for it alone."""


class RowByRow(Protocol):
    """The part of `learning.strips.Strip` that prediction uses."""

    source_columns: tuple[int, int]

    def probabilities(self, start: int, stop: int) -> np.ndarray:
        """float32 (K, stop - start, columns)."""

    def source_rows(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of pixels that rows of the result depend on."""


@runtime_checkable
class InStrips(Segmenter, Protocol):
    """A segmenter that can follow a slide in strips."""

    def strip(
        self, columns: tuple[int, int], read: Callable[[tuple[int, int], tuple[int, int]], np.ndarray], /
    ) -> RowByRow | None:
        """A strip; None where tiles are better."""


class AtOnce(Executor):
    """Does on the thread that asks what it is asked for; errors are raised there."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A result that is there already."""
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class SlideStrip:
    """A strip of a slide whose pixels are read ahead of their use.

    Parameters
    ----------
    slide, model, frame
        What is predicted, and in which frame the model sees it.
    columns
        Of the result.
    reader
        Reads pixels meanwhile.
    on_wait
        Told how many seconds the network waited for pixels.
    """

    def __init__(
        self,
        slide: Slide,
        model: InStrips,
        frame: Frame,
        columns: tuple[int, int],
        reader: Executor,
        on_wait: Callable[[float], None],
    ) -> None:
        def read(box: Box) -> Future[np.ndarray]:
            return reader.submit(slide.read_region, box, frame, mirrored=model.metadata.rules.mirrored)

        self._pixels = _Pixels(read, on_wait)
        self.columns, self.stop = columns, -1
        """Where the result ends that was planned so far."""
        self._ahead: int | None = None
        self._strip = model.strip(columns, self._pixels.rows)

    @property
    def fits(self) -> bool:
        """Whether the model can be followed in strips at all."""
        return self._strip is not None

    def plan(self, start: int, stop: int) -> None:
        """Begin to read what these rows of the result need."""
        assert self._strip is not None
        first, last = self._strip.source_rows(start, stop)
        chunks = range(first // _CHUNK, -(-last // _CHUNK))
        for k in chunks:
            if self._ahead is None or k >= self._ahead:  # those before were read, and may have been used up
                self._pixels.chunk(k, self._strip.source_columns)
        self._ahead, self.stop = chunks.stop, stop

    def probabilities(self, start: int, stop: int) -> np.ndarray:
        """float32 (K, stop - start, columns)."""
        assert self._strip is not None
        return self._strip.probabilities(start, stop)

    def close(self) -> None:
        """Read no more."""
        self._pixels.cancel()


class _Pixels:
    """Chunks of rows that are read or being read. It does not know the strip: a cycle would keep both in memory."""

    def __init__(self, read: Callable[[Box], Future[np.ndarray]], on_wait: Callable[[float], None]) -> None:
        self._read, self._on_wait = read, on_wait
        self._chunks: dict[int, Future[np.ndarray]] = {}

    def chunk(self, k: int, columns: tuple[int, int]) -> Future[np.ndarray]:
        """The k-th chunk."""
        if k not in self._chunks:
            self._chunks[k] = self._read(Box(k * _CHUNK, columns[0], _CHUNK, columns[1] - columns[0]))
        return self._chunks[k]

    def rows(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Pixels; those above them are dropped."""
        begun = time.perf_counter()
        first, last = rows[0] // _CHUNK, -(-rows[1] // _CHUNK)
        found = [self.chunk(k, columns).result() for k in range(first, last)]
        self._on_wait(time.perf_counter() - begun)
        for k in [k for k in self._chunks if k < first]:
            del self._chunks[k]
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return whole[rows[0] - first * _CHUNK : rows[1] - first * _CHUNK]

    def cancel(self) -> None:
        """Read no more."""
        for chunk in self._chunks.values():
            chunk.cancel()


def strips_through(shard: Box, wanted: Callable[[Box], bool], ratio: float) -> list[Box]:
    """The rectangles of a shard that are predicted, each as one strip, from top to bottom.

    They depend on the shard alone, so that the result does not depend on who predicts it.

    Parameters
    ----------
    shard
        In the label image.
    wanted
        Whether a box of the label image has anything to predict.
    ratio
        Pixels that the model sees per pixel of the label image.
    """
    rows, columns = -(-shard.height // CELL), -(-shard.width // CELL)
    mask = np.array(
        [
            [
                wanted(Box(shard.y + i * CELL, shard.x + j * CELL, CELL, CELL).intersection(shard))
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )
    parts = int(np.ceil(shard.width * ratio / _WIDEST))
    edges = np.linspace(0, columns, min(parts, columns) + 1).astype(int)
    out = []
    for left, right in itertools.pairwise(edges.tolist()):
        for cells in _runs(mask[:, left:right]):
            y, x = shard.y + cells.y * CELL, shard.x + (left + cells.x) * CELL
            out.append(Box(y, x, cells.height * CELL, cells.width * CELL).intersection(shard))
    return out


def _runs(mask: np.ndarray) -> Sequence[Box]:
    """The cut into runs of rows, each as wide as what is wanted in it, that computes least, margins included."""
    best: list[tuple[float, tuple[Box, ...]]] = [(0.0, ())]
    for stop in range(1, len(mask) + 1):
        options = []
        for start in range(stop):
            cost, boxes = best[start]
            part = mask[start:stop]
            if part.any():
                inside_y, inside_x = (np.flatnonzero(part.any(axis=k)) for k in (1, 0))
                y, x = start + int(inside_y[0]), int(inside_x[0])
                box = Box(y, x, start + int(inside_y[-1]) + 1 - y, int(inside_x[-1]) + 1 - x)
                above = _MARGIN if y else 0.0  # a strip that begins with the shard often goes on from the one above
                cost, boxes = cost + (box.height + above) * (box.width + _MARGIN), (*boxes, box)
            options.append((cost, boxes))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]
