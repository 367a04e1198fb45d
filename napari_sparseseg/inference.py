"""Prediction of regions by tiles, so that the cut into tiles does not show.

Each tile is read with the model's halo around it, from a frame with absolute coordinates, and begins at a multiple of
the model's stride. So every pixel gets the value it would get from one pass over the whole slide, wherever the region
begins and however it is cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame, tiles

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef, Recipe


class Segmenter(Protocol):
    """What prediction needs of a model; `learning.Model` is one."""

    @property
    def recipe(self) -> Recipe:
        """Classes in channel order, resolution, input channels."""

    @property
    def halo(self) -> int:
        """Pixels around a tile that the tile's values depend on."""

    @property
    def multiple(self) -> int:
        """Origin and size of what the model is given are multiples of this."""

    def probabilities(self, pixels: np.ndarray, *, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """(h, w, C) pixels to float32 (K, h, w)."""


class SavableSegmenter(Segmenter, Protocol):
    """A segmenter that can be written to a file, for its hash and for workers elsewhere."""

    def save(self, path: Path) -> None:
        """Write a safetensors file."""


class RegionReader(Protocol):
    """What prediction needs of a slide."""

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """(h, w, C) pixels; any region, background outside the slide."""


class PredictionStopped(PredictionError):
    """A prediction ended early because it was asked to."""


def input_region(model: Segmenter, tile: Box) -> Box:
    """What has to be read to predict `tile`: with its halo, at the model's stride."""
    m = model.multiple
    y0, x0 = (tile.y - model.halo) // m * m, (tile.x - model.halo) // m * m
    y1, x1 = -(-(tile.y1 + model.halo) // m) * m, -(-(tile.x1 + model.halo) // m) * m
    return Box(y0, x0, y1 - y0, x1 - x0)


def predict_pixels(model: Segmenter, pixels: np.ndarray, source: Box, tile: Box) -> np.ndarray:
    """Probabilities of `tile`, float32 (K, h, w), from the pixels of its `input_region`."""
    probabilities = model.probabilities(pixels, origin=(source.y, source.x))
    y, x = tile.y - source.y, tile.x - source.x
    return probabilities[:, y : y + tile.height, x : x + tile.width]


def predict_tile(model: Segmenter, slide: RegionReader, tile: Box, frame: Frame) -> np.ndarray:
    """Probabilities of one tile of a frame, float32 (K, h, w); the tile may begin and end anywhere."""
    source = input_region(model, tile)
    return predict_pixels(model, slide.read_region(source, frame), source, tile)


def predict_region(
    model: Segmenter,
    slide: RegionReader,
    region: Box,
    frame: Frame,
    *,
    tile: int = 512,
    stop: threading.Event | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict any region of a frame.

    Parameters
    ----------
    model
        A segmenter.
    slide
        Where the pixels come from.
    region
        Box in pixels of the frame.
    frame
        The slide at the resolution that the model sees.
    tile
        Largest side of what the model gets at once, without halo; only time and memory depend on it.
    stop
        When set, no further tile is begun.

    Returns
    -------
    labels
        uint8 (h, w), class ids.
    probabilities
        float32 (K, h, w) in the order of the model's classes.

    Raises
    ------
    PredictionStopped
        When `stop` was set before the last tile.
    """
    region = Box(*region)
    classes = model.recipe.classes
    out = np.empty((len(classes), max(0, region.height), max(0, region.width)), np.float32)
    if not region.area:
        return labels_from(out, classes), out
    for cell in tiles(region, tile):
        if stop is not None and stop.is_set():
            raise PredictionStopped("the prediction was stopped.")
        part = cell.intersection(region)
        target = Box(part.y - region.y, part.x - region.x, part.height, part.width)
        out[(slice(None), *target.slices())] = predict_tile(model, slide, part, frame)
    return labels_from(out, classes), out


def labels_from(probabilities: np.ndarray, classes: Sequence[ClassDef]) -> np.ndarray:
    """Id of the most probable class, uint8 (h, w); on a tie the first in the table. `probabilities` is (K, h, w)."""
    ids = np.array([c.id for c in classes], np.uint8)
    labels: np.ndarray = ids[probabilities.argmax(axis=0)]
    return labels


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of (K, h, w) probabilities as uint8 (h, w): 0 certain, 255 all classes equally probable."""
    if len(probabilities) < 2:
        return np.zeros(probabilities.shape[1:], np.uint8)
    safe = np.clip(probabilities, 1e-6, 1.0)
    bits = -(safe * np.log(safe)).sum(axis=0, dtype=np.float32)
    scaled: np.ndarray = np.rint(bits * (255 / math.log(len(safe))))
    out: np.ndarray = np.clip(scaled, 0, 255).astype(np.uint8)
    return out
