"""How far a model's probabilities can be believed: one temperature, and the probability below which it is unsure.

Both come from held-out strokes (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Strokes lie where a
class is plain, so they can show that a network is too sure of itself, but not that it is too modest: the temperature is
never below 1. See D117. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.metrics import calibration_counts, expected_calibration_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TEMPERATURES = tuple(np.geomspace(1.0, 4.0, 17).round(3).tolist())
PRECISION = 0.95
"""Share of the pixels at or above `Calibration.unsure_below` that are right on held-out strokes."""
MOST_PIXELS = 2_000
"""Of one window; neighbouring pixels of a stroke are nearly the same."""
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """What held-out strokes say of the probabilities of a mixture.

    Attributes
    ----------
    temperature
        The scores of all parts are divided by it before they become probabilities.
    error, error_before
        Expected calibration error with it and without, each class counting the same.
    unsure_below
        The lowest probability of the chosen class at and above which 95 % of the pixels are right, each class counting
        the same; 0 where all pixels together are, None where no such value was found.
    """

    temperature: float = 1.0
    error: float = float("nan")
    error_before: float = float("nan")
    unsure_below: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The entries of a model's metrics."""
        found: dict[str, Any] = {"temperature": self.temperature, "unsure_below": self.unsure_below}
        if not np.isnan(self.error):
            found |= {"calibration_error": self.error, "calibration_error_uncalibrated": self.error_before}
        return found


def thinned(labels: NDArray[np.uint8], ids: Sequence[int], rng: np.random.Generator) -> tuple[Any, NDArray[np.int64]]:
    """Labelled pixels of a window, `MOST_PIXELS` at most: their (rows, columns), and their index into `ids`."""
    rows, columns = np.nonzero(np.isin(labels, list(ids)))
    if len(rows) > MOST_PIXELS:
        chosen = rng.choice(len(rows), MOST_PIXELS, replace=False)
        rows, columns = rows[chosen], columns[chosen]
    lookup = np.zeros(256, np.int64)
    lookup[list(ids)] = np.arange(len(ids))
    return (rows, columns), lookup[labels[rows, columns]]


def calibrate(head: NDArray[Any], fine: NDArray[Any], share: float, truth: NDArray[np.int64]) -> Calibration:
    """The temperature with the least balanced log loss of a mixture, and what is to be expected with it.

    Parameters
    ----------
    head, fine
        Scores (N, K) of both parts at labelled pixels.
    share
        Of `fine` in the mixture, 0..1.
    truth
        (N,) index of the true class.

    Examples
    --------
    >>> scores = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    >>> calibrate(scores, scores, 0.5, np.array([0, 1, 1])).temperature
    4.0
    """
    if not len(truth):
        return Calibration()
    counts = np.bincount(truth, minlength=head.shape[1])
    weight = 1 / counts[truth]
    weight /= weight.sum()
    at = np.arange(len(truth)), truth
    losses = [-(weight * np.log(_mixed(head, fine, share, t)[at] + _LEAST)).sum() for t in TEMPERATURES]
    best = TEMPERATURES[int(np.argmin(losses))]
    errors, confidence, right = [], np.empty(0), np.empty(0)
    for temperature in (1.0, best):
        probabilities = _mixed(head, fine, share, temperature)
        confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
        errors.append(_balanced_error(confidence, right, truth))
    return Calibration(best, errors[1], errors[0], _unsure_below(confidence, right, weight))


def _mixed(head: NDArray[Any], fine: NDArray[Any], share: float, temperature: float) -> Floats:
    out: Floats = (1 - share) * _softmax(head / temperature)
    return out + share * _softmax(fine / temperature) if share else out


def _softmax(scores: NDArray[Any]) -> Floats:
    powers = np.exp(np.asarray(scores, np.float64) - scores.max(1, keepdims=True))
    out: Floats = powers / powers.sum(1, keepdims=True)
    return out


def _balanced_error(confidence: Floats, right: NDArray[Any], truth: NDArray[np.int64]) -> float:
    """Expected calibration error as if each class had as many pixels."""
    counts = np.zeros((3, 0))
    for k in np.unique(truth):
        own = calibration_counts(confidence[truth == k], right[truth == k])
        own /= own[0].sum()
        counts = own if not counts.size else counts + own
    return expected_calibration_error(counts)


def _unsure_below(confidence: Floats, right: NDArray[Any], weight: Floats) -> float | None:
    order = np.argsort(-confidence, kind="stable")
    precision = np.cumsum((weight * right)[order]) / np.cumsum(weight[order])
    enough = np.flatnonzero(precision >= PRECISION)
    if not len(enough):
        return None
    last = int(enough[-1])
    return 0.0 if last == len(order) - 1 else round(float(confidence[order[last]]), 3)
