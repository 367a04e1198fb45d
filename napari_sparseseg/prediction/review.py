"""Held-out strokes that the model gets wrong: tissue it has not learnt, or strokes drawn by mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.tiles import predict_region

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from napari_sparseseg.learning.holdout import HeldOut, Window
    from napari_sparseseg.learning.sources import Source, Unit
    from napari_sparseseg.prediction.tiles import Segmenter
    from napari_sparseseg.slides import Slide

LEAST_WRONG = 0.1
"""Strokes with a smaller share of wrong pixels are left out: borders are never right to the pixel."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A held-out stroke, or the part of a held-out dense region or slide in one window, with wrong pixels."""

    slide: Slide
    box: Box
    """Around the pixels that are wrong, level 0."""
    truth: int
    """Class id it was labelled as."""
    predicted: int
    """Class id predicted for most of its wrong pixels."""
    share: float
    """Share of its labelled pixels that is predicted as another class, 0..1."""

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) of the middle of the box, level-0 pixels."""
        return self.box.y + self.box.height / 2, self.box.x + self.box.width / 2


@dataclass(slots=True)
class _Tally:
    """Pixels of one stroke counted so far."""

    source: Source
    truth: int
    pixels: int = 0
    predicted: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    box: Box | None = None

    def add(self, truth: np.ndarray, predicted: np.ndarray, origin: Box) -> None:
        wrong = truth & (predicted != self.truth)
        self.pixels += int(truth.sum())
        self.predicted += np.bincount(predicted[wrong], minlength=256)
        rows, columns = np.flatnonzero(wrong.any(axis=1)), np.flatnonzero(wrong.any(axis=0))
        if len(rows):
            y, x, y1, x1 = (int(v) for v in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
            box = Box(origin.y + y, origin.x + x, y1 - y, x1 - x)
            self.box = box if self.box is None else self.box.union(box)

    @property
    def share(self) -> float:
        return float(self.predicted.sum() / self.pixels)


def mistakes(model: Segmenter, held: HeldOut) -> list[Mistake]:
    """Predict the windows in which held-out scores are computed and list the strokes that are wrong, worst first.

    Strokes of classes that the model does not have are left out, and those less than `LEAST_WRONG` wrong.
    """
    known = [c.id for c in model.metadata.classes]
    tallies: dict[Hashable, _Tally] = {}
    for window in held.windows():
        source = held.sources[window.source]
        predicted, _ = predict_region(model, source.slide, window.region, source.frame)
        for unit, truth in _labelled(window, source, held.exclude[window.source]):
            for class_id in set(np.unique(window.labels[truth]).tolist()).intersection(known):
                place = window.region if unit.stroke is None else None
                key = (window.source, unit.key, place, class_id)
                tally = tallies.setdefault(key, _Tally(source, class_id))
                tally.add(truth & (window.labels == class_id), predicted, window.region)
    wrong = [t for t in tallies.values() if t.box is not None and t.share >= LEAST_WRONG]
    return [
        Mistake(t.source.slide, t.source.frame.level0(t.box), t.truth, int(t.predicted.argmax()), t.share)
        for t in sorted(wrong, key=lambda t: t.share, reverse=True)
        if t.box is not None
    ]


def _labelled(window: Window, source: Source, units: tuple[Unit, ...]) -> Iterator[tuple[Unit, np.ndarray]]:
    """The held-out units with labels in a window, and a mask of these labels."""
    for unit in units:
        if unit.region.intersection(window.region).area:
            own = unit.labelled(window.labels, window.region, source.frame)
            if own.any():
                yield unit, own
