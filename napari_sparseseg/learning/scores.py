"""What a model scores on held-out labels, counted window by window. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg import metrics
from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef


@dataclass(frozen=True, slots=True)
class Scores:
    """How a model does on held-out labels.

    Attributes
    ----------
    classes
        Class table, in the order of rows and columns.
    confusion
        int64 (K, K + 1), see `metrics.confusion`.
    calibration
        (3, bins), see `metrics.calibration_counts`.
    log_loss_sums
        (2, K), see `metrics.log_loss_sums`.
    units
        Held-out strokes (or slides) behind the score.
    seen
        How many of them the model may have been trained on before a swap.
    warnings
        Which classes could not be scored and what to do about it.
    """

    classes: tuple[ClassDef, ...]
    confusion: NDArray[np.int64]
    calibration: NDArray[np.float64]
    log_loss_sums: NDArray[np.float64]
    units: int = 0
    seen: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def balanced_dice(self) -> float:
        """Mean Dice over the classes scored, each class counting the same; NaN when none was."""
        return metrics.balanced_dice(self.confusion)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over the held-out pixels, 0..1; NaN when there are none."""
        return metrics.expected_calibration_error(self.calibration)

    @property
    def log_loss(self) -> float:
        """Mean -log of the true class's probability, each class counting the same; NaN when none was scored."""
        return metrics.balanced_log_loss(self.log_loss_sums)

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON-able values; None where a class could not be scored."""
        balanced = metrics.balanced(self.confusion)
        columns = {
            "dice": metrics.dice(balanced),
            "precision": metrics.precision(balanced),
            "recall": metrics.recall(self.confusion),
        }
        return {
            "balanced_dice": _number(self.balanced_dice),
            "calibration_error": _number(self.calibration_error),
            "log_loss": _number(self.log_loss),
            "classes": {
                c.name: {
                    "id": c.id,
                    "pixels": int(self.confusion[k].sum()),
                    **{name: _number(values[k]) for name, values in columns.items()},
                }
                for k, c in enumerate(self.classes)
            },
            "confusion": self.confusion.tolist(),
            "pixels": int(self.confusion.sum()),
            "held_out": self.units,
            "seen": self.seen,
            "warnings": list(self.warnings),
        }


class Scorer:
    """Sums up predictions window by window, so that scoring can be spread over many short steps.

    Parameters
    ----------
    classes
        In channel order of the probabilities.
    """

    def __init__(self, classes: Sequence[ClassDef]) -> None:
        self._classes = tuple(classes)
        self._ids = np.array([c.id for c in classes], np.uint8)
        self._confusion = np.zeros((len(classes), len(classes) + 1), np.int64)
        self._calibration = np.zeros((3, metrics.CALIBRATION_BINS))
        self._log_loss = np.zeros((2, len(classes)))

    def add(self, labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        """Count a window: held-out labels (h, w), 0 = not scored; probabilities (K, h, w).

        Raises
        ------
        TrainingError
            When the shapes do not fit each other or the classes.
        """
        if probabilities.shape != (len(self._classes), *labels.shape):
            raise TrainingError(
                f"probabilities are {probabilities.shape}, but {len(self._classes)} classes and labels of "
                f"{labels.shape} need {(len(self._classes), *labels.shape)}."
            )
        at = np.isin(labels, self._ids)
        truth, chosen = labels[at], probabilities[:, at]
        predicted = self._ids[chosen.argmax(0)] if truth.size else truth
        self._confusion += metrics.confusion(truth, predicted, self._ids.tolist())
        self._calibration += metrics.calibration_counts(chosen.max(0, initial=0.0), predicted == truth)
        self._log_loss += metrics.log_loss_sums(truth, chosen, self._ids.tolist())

    def scores(self, units: int = 0, seen: int = 0, warnings: Sequence[str] = ()) -> Scores:
        """What was counted so far."""
        sums = self._confusion.copy(), self._calibration.copy(), self._log_loss.copy()
        return Scores(self._classes, *sums, units, seen, tuple(warnings))


def _number(value: float) -> float | None:
    """A float that JSON can hold."""
    return None if np.isnan(value) else float(value)
