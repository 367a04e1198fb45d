"""How well a model agrees with each stroke: where labels contradict what was learned from the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.sources import Unit, occupied_cells
from napari_sparseseg.metrics import LEAST_PROBABILITY
from napari_sparseseg.prediction.tiles import predict_region

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Snapshot, Stroke
    from napari_sparseseg.learning.sources import Source
    from napari_sparseseg.prediction.tiles import Segmenter

WINDOW = 256
"""Side in frame pixels of the squares that are predicted."""
MOST_WINDOWS = 4
"""Squares that are looked at for one stroke; of a longer one these are a random part."""
COUNTED_PX = 512
"""Pixels per side at which a stroke is counted; a larger one is counted more coarsely."""


@dataclass(slots=True)
class StrokeAgreement:
    """What a model says of the pixels of one stroke.

    Attributes
    ----------
    loss
        Sum over the pixels of -log of the probability of their class, at most 6.9 for each.
    predicted
        Pixels by predicted class id, int64 (256,).
    """

    loss: float = 0.0
    predicted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))

    @property
    def pixels(self) -> int:
        """How many were looked at."""
        return int(self.predicted.sum())


class AgreementScorer:
    """Predicts the squares in which strokes lie, one a call, so that other work comes in between.

    Parameters
    ----------
    model
        Strokes of classes that it does not have are left out.
    source
        The slide, its labels, and the frame that the model sees.
    strokes
        Of the labels. A pixel counts for a stroke if it lies in it and has its class still.

    Attributes
    ----------
    found
        `StrokeAgreement` by stroke id; complete for those that are not `pending`.
    """

    def __init__(self, model: Segmenter, source: Source, strokes: Iterable[Stroke]) -> None:
        self._model, self._source = model, source
        self._channels = {c.id: k for k, c in enumerate(model.metadata.classes)}
        self._ids = np.array([*self._channels], np.int64)
        self.found: dict[int, StrokeAgreement] = {}
        self._windows = self._plan([s for s in strokes if s.class_id in self._channels])
        self.windows = len(self._windows)

    def _plan(self, strokes: Sequence[Stroke]) -> list[tuple[Box, list[Unit]]]:
        """Squares with the strokes that are looked at in them; a square that several share is predicted once."""
        occupied = set(occupied_cells(self._source, WINDOW))
        planned: dict[Box, list[Unit]] = {}
        for stroke in strokes:
            unit, looked = unit_of(stroke, self._source.frame), 0
            cells = _cells(unit.region, occupied)
            # the first squares that others have planned already are as good as any
            order = np.random.default_rng(stroke.id).permutation(len(cells))
            for cell in sorted((cells[k] for k in order), key=lambda c: c not in planned):
                if looked == MOST_WINDOWS:
                    break
                if self._own(unit, cell, self._source.read_labels(cell)).any():
                    planned.setdefault(cell, []).append(unit)
                    looked += 1
        return list(planned.items())

    @property
    def pending(self) -> set[int]:
        """Ids of the strokes of which squares are left to predict."""
        return {unit.stroke.id for _, units in self._windows for unit in units if unit.stroke is not None}

    def advance(self) -> bool:
        """Predict the next square; False when there was none left."""
        if not self._windows:
            return False
        cell, units = self._windows.pop()
        labels, frame = self._source.read_labels(cell), self._source.frame
        predicted, probabilities = predict_region(self._model, self._source.slide, cell, frame)
        for unit in units:
            assert unit.stroke is not None
            own = self._own(unit, cell, labels)
            p = probabilities[self._channels[unit.stroke.class_id]][own].astype(np.float64)
            found = self.found.setdefault(unit.stroke.id, StrokeAgreement())
            found.loss -= float(np.log(np.maximum(p, LEAST_PROBABILITY)).sum())
            found.predicted += np.bincount(predicted[own], minlength=256)
        return True

    def _own(self, unit: Unit, region: Box, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return own_pixels(unit, region, self._source.frame, labels)


def unit_of(stroke: Stroke, frame: Frame) -> Unit:
    """A stroke or dense region with the frame pixels that it may touch."""
    return Unit(frame.cover(stroke.box).grown(2), stroke, frozenset({stroke.class_id}))


def own_pixels(unit: Unit, region: Box, frame: Frame, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Bool (h, w): pixels of a region that lie in a stroke and have its class still, given the labels there."""
    assert unit.stroke is not None
    own: NDArray[np.bool_] = labels == unit.stroke.class_id
    return own & unit.covers(region, frame)


def count_pixels(labels: Snapshot, stroke: Stroke) -> int:
    """Level-0 pixels that lie in a stroke and have its class still; of a large one an estimate."""
    step = float(max(1, math.ceil(max(stroke.box.height, stroke.box.width) / COUNTED_PX)))
    frame = Frame((step, step))
    unit = unit_of(stroke, frame)
    region = unit.region.intersection(Box(0, 0, *frame.shape(labels.shape)))
    own = own_pixels(unit, region, frame, labels.read_region(region, frame))
    return round(int(own.sum()) * step * step)


def _cells(region: Box, occupied: set[Box]) -> list[Box]:
    rows = range(max(0, region.y) // WINDOW, -(-region.y1 // WINDOW))
    columns = range(max(0, region.x) // WINDOW, -(-region.x1 // WINDOW))
    if len(rows) * len(columns) > len(occupied):
        return sorted(cell for cell in occupied if cell.intersection(region).area)
    cells = (Box(i * WINDOW, j * WINDOW, WINDOW, WINDOW) for i in rows for j in columns)
    return [cell for cell in cells if cell in occupied]
