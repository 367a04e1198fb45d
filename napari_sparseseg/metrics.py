"""Scores of label maps against sparse or dense truth, all from counts that can be summed over windows and slides.

Pixels whose truth is 0 (unlabelled) never count. Scores per class are NaN where the class cannot be scored, so that a
mean over classes (`numpy.nanmean`) is a mean over those that can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.config import MAX_CLASS_ID
from napari_sparseseg.errors import SparseSegError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef

    Counts = NDArray[np.int64]
    Floats = NDArray[np.float64]

CALIBRATION_BINS = 15
LEAST_PROBABILITY = 1e-3


def confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: Sequence[int]) -> Counts:
    """Count pixels by true and by predicted class.

    Parameters
    ----------
    truth, predicted
        Integers of one shape: class ids, 0 = unlabelled. Truth that is 0 or no id of `classes` is ignored.
    classes
        K distinct class ids, in the order wanted for rows and columns.

    Returns
    -------
    int64 (K, K + 1): row = true class, column = predicted class; the last column counts the pixels predicted to be none
    of `classes`, which are misses.

    Raises
    ------
    SparseSegError
        For shapes that differ, values that are not integers in 0..255, or class ids that are not distinct in 1..255.
    """
    lookup = np.full(MAX_CLASS_ID + 1, len(classes))
    if len(set(classes)) != len(classes) or not all(1 <= c <= MAX_CLASS_ID for c in classes):
        raise SparseSegError(f"class ids {list(classes)} are not distinct numbers in 1..255.")
    if truth.shape != predicted.shape:
        raise SparseSegError(f"truth is {truth.shape} but the prediction {predicted.shape}; compare like with like.")
    lookup[list(classes)] = np.arange(len(classes))
    rows, columns = lookup[_ids(truth, "truth")], lookup[_ids(predicted, "the prediction")]
    known = rows < len(classes)
    width = len(classes) + 1
    pairs = np.bincount(rows[known] * width + columns[known], minlength=len(classes) * width)
    return pairs.reshape(len(classes), width)


def dice(counts: NDArray[Any]) -> Floats:
    """Dice (F1) per class, 2 TP / (2 TP + FP + FN); NaN for classes without true pixels."""
    true, predicted, hit = _margins(counts)
    return _ratio(2 * hit, true + predicted, true)


def recall(counts: NDArray[Any]) -> Floats:
    """Share of the true pixels of each class that were found; NaN for classes without true pixels."""
    true, _, hit = _margins(counts)
    return _ratio(hit, true, true)


def precision(counts: NDArray[Any]) -> Floats:
    """Share of the pixels predicted as each class that are right; NaN for classes that were never predicted."""
    _, predicted, hit = _margins(counts)
    return _ratio(hit, predicted, predicted)


def balanced(counts: NDArray[Any]) -> Floats:
    """The confusion as if every class had the same number of true pixels: rows sum to 1, or to 0 without pixels.

    Scribbles say nothing about how common a class is; how long somebody's strokes were must not decide the score.
    """
    values = np.asarray(counts, dtype=np.float64)
    totals = values.sum(1, keepdims=True)
    out = np.zeros_like(values)
    np.divide(values, totals, out=out, where=totals > 0)
    return out


def balanced_dice(counts: NDArray[Any]) -> float:
    """Mean Dice over the classes with true pixels, from the `balanced` confusion; NaN without any."""
    scores = dice(balanced(counts))
    scored = scores[~np.isnan(scores)]
    return float(scored.mean()) if scored.size else float("nan")


def calibration_counts(confidence: NDArray[Any], correct: NDArray[Any], bins: int = CALIBRATION_BINS) -> Floats:
    """Sort predictions by confidence for `expected_calibration_error`.

    Parameters
    ----------
    confidence
        Probability of the predicted class, 0..1, any shape.
    correct
        Whether it was the true class, same shape.
    bins
        Number of equally wide bins.

    Returns
    -------
    float64 (3, bins): number of pixels, sum of their confidence, number that is correct. Can be summed over windows.
    """
    flat, right = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(correct).ravel()
    index = np.clip((flat * bins).astype(np.int64), 0, bins - 1)
    return np.stack(
        [
            np.bincount(index, minlength=bins).astype(np.float64),
            np.bincount(index, weights=flat, minlength=bins),
            np.bincount(index, weights=right.astype(np.float64), minlength=bins),
        ]
    )


def expected_calibration_error(counts: NDArray[Any]) -> float:
    """Mean distance between confidence and accuracy over the bins of `calibration_counts`, by pixels; NaN if empty.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    number, confidence, correct = np.asarray(counts, dtype=np.float64)
    total = number.sum()
    return float(np.abs(confidence - correct).sum() / total) if total else float("nan")


def log_loss_sums(truth: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[int]) -> Floats:
    """Sum -log of the probability of the true class, for `balanced_log_loss`.

    Parameters
    ----------
    truth
        (N,) class ids; what is no id of `classes` is ignored.
    probabilities
        (K, N) in the order of `classes`; counted as `LEAST_PROBABILITY` at least, so that one pixel cannot decide.

    Returns
    -------
    float64 (2, K): sum, number of pixels. Can be summed over windows.
    """
    out = np.zeros((2, len(classes)))
    for k, class_id in enumerate(classes):
        own = probabilities[k, truth == class_id]
        out[:, k] = -np.log(np.maximum(own, LEAST_PROBABILITY)).sum(), own.size
    return out


def balanced_log_loss(sums: NDArray[Any]) -> float:
    """Mean over classes of the mean of `log_loss_sums` in nats; NaN without any pixel."""
    total, number = np.asarray(sums, dtype=np.float64)
    scores = _ratio(total, number, number)
    scored = scores[~np.isnan(scores)]
    return float(scored.mean()) if scored.size else float("nan")


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a model on held-out labels.

    Attributes
    ----------
    classes
        Class table, in the order of rows and columns.
    confusion
        int64 (K, K + 1), see `confusion`.
    calibration
        (3, bins), see `calibration_counts`.
    log_loss_sums
        (2, K), see `log_loss_sums`.
    units
        Held-out strokes (or slides) behind the score.
    seen
        How many of them the model may have been trained on before a swap.
    warnings
        Why classes could not be scored, and what to do about it.
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
        return balanced_dice(self.confusion)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over the held-out pixels, 0..1; NaN when there are none."""
        return expected_calibration_error(self.calibration)

    @property
    def log_loss(self) -> float:
        """Mean -log of the true class's probability, each class counting the same; NaN when none was scored."""
        return balanced_log_loss(self.log_loss_sums)

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON-able values; None where a class could not be scored."""
        shares = balanced(self.confusion)
        columns = {
            "dice": dice(shares),
            "precision": precision(shares),
            "recall": recall(self.confusion),
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
        self._calibration = np.zeros((3, CALIBRATION_BINS))
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
        self._confusion += confusion(truth, predicted, self._ids.tolist())
        self._calibration += calibration_counts(chosen.max(0, initial=0.0), predicted == truth)
        self._log_loss += log_loss_sums(truth, chosen, self._ids.tolist())

    def scores(self, units: int = 0, seen: int = 0, warnings: Sequence[str] = ()) -> Scores:
        """The scores of everything added so far."""
        sums = self._confusion.copy(), self._calibration.copy(), self._log_loss.copy()
        return Scores(self._classes, *sums, units, seen, tuple(warnings))


def _ids(values: NDArray[Any], what: str) -> NDArray[Any]:
    if not np.issubdtype(values.dtype, np.integer):
        raise SparseSegError(f"{what} is {values.dtype}; give integer class ids, 0 = unlabelled.")
    if values.size and (values.min() < 0 or values.max() > MAX_CLASS_ID):
        raise SparseSegError(f"{what} holds values from {values.min()} to {values.max()}; class ids are 0..255.")
    return values


def _margins(counts: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Per class: true pixels, predicted pixels, hits. Takes (K, K) as well as (K, K + 1)."""
    values = np.asarray(counts, dtype=np.float64)
    k = len(values)
    return values.sum(1), values[:, :k].sum(0), np.diagonal(values[:, :k])


def _ratio(numerator: Floats, denominator: Floats, support: Floats) -> Floats:
    """The quotient where there is support, else NaN."""
    out = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=support > 0)
    return out


def _number(value: float) -> float | None:
    """A float that JSON can hold."""
    return None if np.isnan(value) else float(value)
