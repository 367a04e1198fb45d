"""Is a slide stained and scanned like those that a model was trained on? And its colours matched to theirs.

Patches of tissue are described by the mean and the standard deviation of the optical density of their tissue, per
channel, as logarithms: six numbers. Of a model the centre and covariance of its patches are kept, and how far the mean
of some patches that were left out was from the others: what is `LIKELY` times as far is said to be unlike. D161.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.geometry import Box, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.learning.sources import Source
    from napari_sparseseg.slides import Slide

    Description = NDArray[np.float64]

PATCH = 256
"""Side of a patch, in pixels of the training resolution."""
MOST_PATCHES = 64
"""Of all training slides together, and of a slide that is looked at a third."""
LEAST_PATCHES = 8
"""Fewer do not say what is usual."""
TOGETHER = 8
"""Patches whose mean is compared while the limit is measured."""
LIKELY = 1.25
TISSUE, LEAST_TISSUE = 0.12, 0.2
"""Mean optical density of tissue, and its share in a patch that is looked at."""
_THUMBNAIL = 1024
_FLOOR = 1e-3
_TRIALS = 40


def optical_density(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """float32 of the shape of 8-bit `pixels` (..., 3): natural logarithm, 0 is white."""
    density: NDArray[np.float32] = -np.log((pixels.astype(np.float32) + 1) / 256)
    return density


def described(pixels: NDArray[np.uint8]) -> Description | None:
    """Six numbers of a patch (h, w, 3); None with too little tissue."""
    density = optical_density(pixels)
    tissue = density.mean(axis=-1) > TISSUE
    if tissue.mean() < LEAST_TISSUE:
        return None
    found = density[tissue]
    values = np.maximum(np.concatenate([found.mean(axis=0), found.std(axis=0)]), _FLOOR)
    return np.asarray(np.log(values), np.float64)


def patches_of(slide: Slide, frame: Frame, most: int = MOST_PATCHES // 3) -> list[tuple[Box, Description]]:
    """Level-0 boxes of patches of tissue spread over a brightfield slide, and what they are like; always the same ones.

    Raises
    ------
    SlideError
        Where the slide cannot be read.
    """
    coarse = Frame((max(1.0, max(slide.shape) / _THUMBNAIL),) * 2)
    density = optical_density(slide.read_region(Box(0, 0, *coarse.shape(slide.shape)), coarse)).mean(axis=-1)
    height, width = frame.shape(slide.shape)
    cells = []
    for y in range(0, max(1, height - PATCH // 2), PATCH):
        for x in range(0, max(1, width - PATCH // 2), PATCH):
            region = Box(y, x, PATCH, PATCH).intersection(Box(0, 0, height, width))
            seen = density[coarse.cover(frame.level0(region)).slices()]
            if seen.size and (seen > TISSUE).mean() >= LEAST_TISSUE:
                cells.append(region)
    order = np.random.default_rng(0).permutation(len(cells))[:most]
    found = ((cells[i], described(slide.read_region(cells[i], frame))) for i in order)
    return [(frame.level0(region), patch) for region, patch in found if patch is not None]


class TrainedTissue:
    """Descriptions of patches of all slides that a model was trained on, gathered one slide at a time.

    Parameters
    ----------
    before
        Those of the model that is trained on.
    """

    def __init__(self, before: Sequence[Sequence[float]] = ()) -> None:
        self._before = [np.array(patch, float) for patch in before]
        self._found: dict[str, list[Description]] = {}

    def look(self, sources: Iterable[Source]) -> bool:
        """Describe the next slide; False where there is none."""
        wanted = [s for s in sources if s.brightfield and s.slide.fingerprint not in self._found]
        if not wanted:
            return False
        found = patches_of(wanted[0].slide, wanted[0].frame)
        self._found[wanted[0].slide.fingerprint] = [patch for _, patch in found]
        return True

    def chosen(self) -> tuple[tuple[float, ...], ...]:
        """At most `MOST_PATCHES`, as they are saved with the model."""
        every = [*self._before, *(patch for patches in self._found.values() for patch in patches)]
        picked = sorted(np.random.default_rng(0).permutation(len(every))[:MOST_PATCHES].tolist())
        return tuple(tuple(round(float(v), 4) for v in every[i]) for i in picked)


def are_patches(value: object) -> bool:
    """Whether a value from a model file is what `TrainedTissue.chosen` gives."""
    return (
        isinstance(value, (tuple, list))
        and len(value) <= MOST_PATCHES
        and all(
            isinstance(patch, (tuple, list))
            and len(patch) == 6
            and all(isinstance(v, (int, float)) and math.isfinite(v) and abs(v) < 20 for v in patch)
            for patch in value
        )
    )


@dataclass(frozen=True, slots=True)
class Stain:
    """How the tissue that a model was trained on is stained: `centre` (6), `inverse` covariance (6 x 6), `limit`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> patches = [rng.normal((-1, -0.5, -1, -2, -2, -2), 0.1) for _ in range(20)]
    >>> stain = Stain.of(patches)
    >>> stain.unlike(patches[:10]) < 1 < stain.unlike([p + 0.5 for p in patches])
    True
    """

    centre: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]
    limit: float

    @classmethod
    def of(cls, patches: Iterable[Description]) -> Stain | None:
        """Of patches of all training slides; None where there are too few."""
        found = np.array(list(patches))
        if len(found) < LEAST_PATCHES:
            return None
        rng, far = np.random.default_rng(0), []
        number = max(1, min(TOGETHER, len(found) // 4))
        for _ in range(_TRIALS):
            order = rng.permutation(len(found))
            far.append(_distance(*_fitted(found[order[number:]]), found[order[:number]].mean(axis=0)))
        centre, inverse = _fitted(found)
        return cls(tuple(centre.tolist()), tuple(map(tuple, inverse.tolist())), LIKELY * max(far))

    def unlike(self, patches: Iterable[Description]) -> float:
        """How unlike patches are together: above 1, more than what was left out of training ever was."""
        mean = np.mean(list(patches), axis=0)
        return _distance(np.array(self.centre), np.array(self.inverse), mean) / self.limit


@dataclass(frozen=True, slots=True)
class StainMap:
    """Matches optical densities: what has `mean` and `spread` (3 each) gets `to_mean` and `to_spread`; glass stays."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    to_mean: tuple[float, ...]
    to_spread: tuple[float, ...]

    @classmethod
    def between(cls, patches: Iterable[Description], stain: Stain) -> StainMap:
        """From a slide, by patches of it, to what a model was trained on."""
        here, there = np.exp(np.mean(list(patches), axis=0)), np.exp(stain.centre)
        return cls(*(tuple(map(float, part)) for part in (here[:3], here[3:], there[:3], there[3:])))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StainMap:
        """Read what `dataclasses.asdict` made.

        Raises
        ------
        ValueError
            Where it holds anything else.
        """
        parts = [tuple(float(v) for v in data[f.name]) for f in fields(cls)]
        if any(len(part) != 3 or not all(map(math.isfinite, part)) for part in parts) or min(parts[1]) <= 0:
            raise ValueError("a stain map has four times three numbers, and spreads above 0")
        return cls(*parts)

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """8-bit pixels (..., 3) as they would look, float32, 0 to 255."""
        density = optical_density(pixels)
        mean, spread, to_mean, to_spread = (np.array(getattr(self, f.name), np.float32) for f in fields(self))
        there = (density - mean) * (to_spread / spread) + to_mean
        share = np.clip(density.mean(axis=-1, keepdims=True) / TISSUE, 0, 1)
        matched = np.maximum(density + share * (there - density), 0)
        values: NDArray[np.float32] = np.clip(np.exp(-matched) * 256 - 1, 0, 255).astype(np.float32)
        return values


def _fitted(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    covariance = np.cov(found.T)
    covariance += np.eye(len(covariance)) * (1e-3 * np.trace(covariance) / len(covariance) + 1e-4)
    return found.mean(axis=0), np.asarray(np.linalg.inv(covariance), np.float64)


def _distance(centre: NDArray[np.float64], inverse: NDArray[np.float64], mean: NDArray[np.float64]) -> float:
    offset = mean - centre
    square = float(offset @ inverse @ offset)
    return math.sqrt(max(square, 0.0) / len(offset))
