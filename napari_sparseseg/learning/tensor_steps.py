"""What a bioimage.io package does to values before and after its network, as plain steps on (channel, height, width).

Only steps that treat every pixel alike are known: one that measures the whole image first, such as a normalisation by
the image's own mean, would give every tile of a slide another answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_sparseseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Kind = Literal["linear", "clip", "above", "sigmoid", "softmax", "cast"]
_NUMBERS = ("linear", "clip", "above")
_PER_IMAGE = ("zero_mean_unit_variance", "scale_range", "scale_mean_variance")
_MOST_VALUES = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    ``linear``: times `first`, plus `second`. ``clip``: into `first`..`second`. ``above``: 1 above `first`, else 0.
    ``cast``: to `dtype` and back. `first` and `second` have one value for all channels, or one a channel.

    Raises
    ------
    ModelError
        For values that no step has.
    """

    kind: Kind
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    dtype: str = ""

    def __post_init__(self) -> None:
        numbers = (*self.first, *self.second)
        if self.kind not in (*_NUMBERS, "sigmoid", "softmax", "cast") or len(numbers) > 2 * _MOST_VALUES:
            raise ModelError(f"there is no step {str(self.kind)[:50]!r} of {len(numbers)} values.")
        if self.kind in _NUMBERS and not (self.first and (self.second or self.kind == "above")):
            raise ModelError(f"the step {self.kind!r} lacks its numbers.")
        if not all(math.isfinite(v) for v in numbers):
            raise ModelError(f"the step {self.kind!r} has numbers that are not finite.")
        if self.kind == "cast" and (self.dtype not in np.sctypeDict or np.dtype(self.dtype).kind not in "buif"):
            raise ModelError(f"{self.dtype[:50]!r} is not a type of numbers.")

    @property
    def channels(self) -> int:
        """How many channels the step has numbers for; 1: any."""
        return max(len(self.first), len(self.second), 1)

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (C, h, w) after the step."""
        first, second = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.first, self.second))
        if self.kind == "linear":
            return values * first + second
        if self.kind == "clip":
            return np.clip(values, first, second)
        if self.kind == "above":
            return (values > first).astype(np.float32)
        if self.kind == "cast":
            return as_dtype(values, np.dtype(self.dtype)).astype(np.float32)
        return sigmoid(values) if self.kind == "sigmoid" else softmax(values)


def apply_steps(steps: Iterable[Step], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (C, h, w) after all steps, in order."""
    for step in steps:
        values = step.apply(values)
    return values


def as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values of another dtype; whole numbers are rounded and kept within its range."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        # float32 cannot hold the greatest of 32 bits: the next lower one it can
        high = limits.max if limits.bits < 32 else int(np.nextafter(np.float32(limits.max), np.float32(0)))
        values = np.clip(np.rint(values), limits.min, high)
    cast: NDArray[Any] = values.astype(dtype)
    return cast


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) without overflow."""
    out: NDArray[np.float32] = 0.5 * (1.0 + np.tanh(0.5 * values))
    return out


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares of the channels (first axis), which sum to 1."""
    powers: NDArray[np.float32] = np.exp(values - values.max(axis=0))
    powers /= powers.sum(axis=0)
    return powers


def read_steps(described: Any, where: str) -> tuple[Step, ...]:
    """The steps of a package's ``preprocessing`` or ``postprocessing``, of format 0.4 or 0.5.

    Raises
    ------
    ModelError
        For a step that is not known or depends on the whole image, naming it.
    """
    if not isinstance(described or [], list) or len(described or []) > 20:
        raise ModelError(f"{where}: its processing is not a list of steps; the package is damaged.")
    found = []
    for item in described or []:
        name = item.get("id", item.get("name")) if isinstance(item, dict) else item
        values = (item.get("kwargs") or {}) if isinstance(item, dict) else {}
        if not isinstance(name, str) or not isinstance(values, dict):
            raise ModelError(f"{where}: a step {str(item)[:100]!r} cannot be read; the package is damaged.")
        try:
            found.append(_step(name, values, where))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise ModelError(f"{where}: the numbers of its step {name[:50]} cannot be read: {error}.") from error
    return tuple(step for step in found if step is not None)


def _step(name: str, values: dict[str, Any], where: str) -> Step | None:
    if values.get("axis") not in (None, "channel", "c"):
        raise ModelError(
            f"{where}: its step {name} differs along {values['axis']!r}; only one by channel is supported."
        )
    fixed = name == "fixed_zero_mean_unit_variance" or (
        name == "zero_mean_unit_variance" and values.get("mode") == "fixed"
    )
    if fixed:
        mean, deviation = _floats(values["mean"]), _floats(values["std"])
        # 0.4 adds a small number to the deviation; in 0.5 there is none
        added = float(values.get("eps", 1e-6)) if name == "zero_mean_unit_variance" else 0.0
        gain = tuple(1 / (d + added) for d in deviation)
        pairs = zip(*_as_long(mean, gain), strict=True)
        return Step("linear", gain, tuple(-m * g for m, g in pairs))
    if name in _PER_IMAGE or "min_percentile" in values:
        raise ModelError(
            f"{where}: its step {name} measures each whole image first, so tiles of a slide would not agree; such a "
            "model is not supported. Export it with fixed numbers."
        )
    if name == "ensure_dtype":
        dtype = str(values["dtype"])
        return None if dtype in ("float32", "float64") else Step("cast", dtype=dtype)
    if name == "scale_linear":
        return Step("linear", _floats(values.get("gain", 1.0)), _floats(values.get("offset", 0.0)))
    if name == "clip":
        return Step("clip", _floats(values["min"]), _floats(values["max"]))
    if name == "binarize":
        return Step("above", _floats(values["threshold"]))
    if name == "sigmoid":
        return Step("sigmoid")
    if name == "softmax":
        return Step("softmax")
    raise ModelError(f"{where}: its step {name[:50]!r} is not supported; export the model without it.")


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(value, np.float64).ravel()[: _MOST_VALUES + 1].tolist())


def _as_long(a: Sequence[float], b: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    n = max(len(a), len(b))
    return tuple(a) * (n if len(a) == 1 else 1), tuple(b) * (n if len(b) == 1 else 1)
