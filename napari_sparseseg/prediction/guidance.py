"""The next region to label: unlabelled tissue where the model is unsure, spread over the slide.

A cell is ranked by its mean predictive entropy, lowered near labels and near earlier suggestions. Uncertainty alone
returns to the same border again and again; distance is the cheap form of the diversity that batch active learning asks
for (Sener & Savarese, ICLR 2018). Alternatives that were measured: D33.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.prediction.tiles import entropy, predict_region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.prediction.tiles import Segmenter
    from napari_sparseseg.prediction.tissue import TissueMask
    from napari_sparseseg.slides import Slide

CELL = 256
"""Side of a suggestion in pixels at the training resolution."""
LOOKED_AT = 16
"""Cells that are predicted for one suggestion; more would take noticeably longer."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A region worth a stroke."""

    box: Box
    """Level-0 pixels."""
    classes: tuple[int, int]
    """The two class ids that the model confuses most often there, the more probable first."""
    uncertainty: float
    """Mean entropy, 0..1."""

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) of the middle, level-0 pixels."""
        return self.box.y + self.box.height / 2, self.box.x + self.box.width / 2


def candidates(
    shape: tuple[int, int],
    frame: Frame,
    labels: Snapshot,
    tissue: TissueMask,
    visited: Sequence[Box],
    rng: np.random.Generator,
) -> list[Box]:
    """Up to `LOOKED_AT` unlabelled tissue cells in frame pixels, far from labels, from each other and from `visited`.

    Each is the farthest of a few random cells from all chosen so far, which spreads them without comparing all cells of
    a gigapixel slide with each other.
    """
    taken = set(labels.occupied(frame, CELL)) | {frame.cover(box) for box in visited}
    rows, columns = (-(-n // CELL) for n in frame.shape(shape))
    known = [(c.y + CELL / 2, c.x + CELL / 2) for c in taken]
    chosen: list[Box] = []
    for _ in range(LOOKED_AT):
        drawn = {
            Box(int(i) * CELL, int(j) * CELL, CELL, CELL)
            for i, j in zip(rng.integers(0, rows, 48), rng.integers(0, columns, 48), strict=True)
        }
        free = [c for c in sorted(drawn - taken) if tissue.overlaps(c, frame)]
        if not free:
            continue
        best = max(free[:8], key=lambda c: _distance(c, known))
        chosen.append(best)
        taken.add(best)
        known.append((best.y + CELL / 2, best.x + CELL / 2))
    return chosen


def suggest(
    model: Segmenter, slide: Slide, frame: Frame, cells: Sequence[Box], near: Sequence[Box] = ()
) -> Suggestion | None:
    """Predict `cells` (frame pixels) and pick the most uncertain; `near` are earlier suggestions, level 0.

    Cells within two cells of an earlier suggestion count half. None without cells.
    """
    earlier = [(b.y + CELL / 2, b.x + CELL / 2) for b in (frame.cover(n) for n in near)]
    best: tuple[float, Suggestion] | None = None
    for cell in cells:
        _, probabilities = predict_region(model, slide, cell, frame)
        uncertainty = float(entropy(probabilities).mean()) / 255
        worth = uncertainty * (0.5 if earlier and _distance(cell, earlier) < 2 * CELL else 1.0)
        if best is None or worth > best[0]:
            ids = [c.id for c in model.metadata.classes]
            best = worth, Suggestion(frame.level0(cell), _most_confused(probabilities, ids), uncertainty)
    return None if best is None else best[1]


def _most_confused(probabilities: np.ndarray, ids: Sequence[int]) -> tuple[int, int]:
    """The pair of classes that is first and second in most pixels, weighted by how close they are."""
    if len(ids) < 2:
        return ids[0], ids[0]
    order = np.argsort(probabilities, axis=0)
    first, second = order[-1], order[-2]
    margin = (
        np.take_along_axis(probabilities, first[None], 0)[0] - np.take_along_axis(probabilities, second[None], 0)[0]
    )
    pair = first.astype(np.int64) * len(ids) + second
    votes = np.bincount(pair.ravel(), weights=(1 - margin).ravel(), minlength=len(ids) ** 2)
    top = int(votes.argmax())
    return ids[top // len(ids)], ids[top % len(ids)]


def _distance(cell: Box, points: Sequence[tuple[float, float]]) -> float:
    if not points:
        return 0.0
    at = np.asarray(points)
    return float(np.hypot(at[:, 0] - cell.y - CELL / 2, at[:, 1] - cell.x - CELL / 2).min())
