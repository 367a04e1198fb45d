"""Prediction of regions by tiles, without visible seams.

Each tile is read with the model's halo around it, in absolute coordinates of a frame, starting at a multiple of the
model's stride. So every pixel gets the value it would get from one pass over the whole slide, wherever the region
starts and however it is cut. Beyond its edges the slide is mirrored, in training and in prediction; see D32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from napari_sparseseg.errors import PredictionStopped as PredictionStopped
from napari_sparseseg.geometry import Box, Frame, tiles
from napari_sparseseg.slides.resample import apply, axis

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.learning.model_file import ModelMetadata
    from napari_sparseseg.slides import Slide
    from napari_sparseseg.slides.resample import Axis


class Segmenter(Protocol):
    """The part of a model that prediction uses; `learning.Model` is one."""

    @property
    def metadata(self) -> ModelMetadata:
        """Classes in channel order, resolution, input channels."""

    @property
    def halo(self) -> int:
        """Pixels around a tile that the values in it depend on."""

    @property
    def size_divisor(self) -> int:
        """Origin and size of the model's input are multiples of this."""

    def probabilities(self, pixels: np.ndarray, *, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """(h, w, C) pixels to float32 (K, h, w)."""


class SavableSegmenter(Segmenter, Protocol):
    """A segmenter that can be written to a file, for its hash and for workers elsewhere."""

    def save(self, path: Path) -> None:
        """Write a safetensors file."""


class RegionReader(Protocol):
    """The part of a slide that prediction uses."""

    def read_region(self, region: Box, frame: Frame, *, mirrored: bool = False) -> np.ndarray:
        """(h, w, C) pixels of any region; beyond the slide's edges its mirror image, or background."""


def model_frame(metadata: ModelMetadata, slide: Slide, asked: Frame) -> Frame:
    """The frame in which the model sees a slide: of its training resolution where both mpp are known, else `asked`."""
    return asked if metadata.mpp is None or slide.mpp is None else slide.frame(metadata.mpp)


def input_region(model: Segmenter, tile: Box) -> Box:
    """The region to read to predict `tile`: with its halo, aligned to the model's stride."""
    m = model.size_divisor
    y0, x0 = (tile.y - model.halo) // m * m, (tile.x - model.halo) // m * m
    y1, x1 = -(-(tile.y1 + model.halo) // m) * m, -(-(tile.x1 + model.halo) // m) * m
    return Box(y0, x0, y1 - y0, x1 - x0)


def predict_pixels(model: Segmenter, pixels: np.ndarray, source: Box, tile: Box) -> np.ndarray:
    """Probabilities of `tile`, float32 (K, h, w), from the pixels of its `input_region`."""
    probabilities = model.probabilities(pixels, origin=(source.y, source.x))
    y, x = tile.y - source.y, tile.x - source.x
    return probabilities[:, y : y + tile.height, x : x + tile.width]


def predict_tile(
    model: Segmenter, slide: RegionReader, tile: Box, frame: Frame, read_frame: Frame | None = None
) -> np.ndarray:
    """Probabilities of one tile of a frame, float32 (K, h, w); the tile may begin and end anywhere.

    The model sees the slide in `read_frame` where that is given; its probabilities are resampled to `frame`.
    """
    view = TileView(frame, read_frame or frame, tile)
    source = input_region(model, view.needed)
    pixels = slide.read_region(source, view.read_frame, mirrored=model.metadata.rules.mirrored)
    return view.resampled(predict_pixels(model, pixels, source, view.needed))


class TileView:
    """A tile of the result, and the region that the model has to predict to fill it.

    Where the two frames differ, probabilities are averaged over each pixel of a coarser result and interpolated for a
    finer one, in absolute coordinates: tiles agree however the slide is cut.
    """

    def __init__(self, frame: Frame, read_frame: Frame, tile: Box) -> None:
        self.read_frame, self.needed = read_frame, tile
        self._axes: tuple[Axis, Axis] | None = None
        if read_frame != frame:
            steps = [a / b for a, b in zip(frame.downsample, read_frame.downsample, strict=True)]
            y, x = axis(tile.y, tile.y1, steps[0]), axis(tile.x, tile.x1, steps[1])
            self._axes = y, x
            (y0, y1), (x0, x1) = y.source, x.source
            self.needed = Box(y0, x0, y1 - y0, x1 - x0)

    def resampled(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (K, h, w) of `needed`, as those of the tile."""
        if self._axes is None:
            return probabilities
        moved = np.ascontiguousarray(probabilities.transpose(1, 2, 0))
        return np.ascontiguousarray(apply(moved, *self._axes).transpose(2, 0, 1))


def predict_region(
    model: Segmenter,
    slide: RegionReader,
    region: Box,
    frame: Frame,
    *,
    read_frame: Frame | None = None,
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
        The slide at the resolution of the result.
    read_frame
        The slide at the resolution that the model sees, see `model_frame`; None: `frame`.
    tile
        Largest side of the model's input, without halo; it affects time and memory only.
    stop
        When set, no further tile is predicted.

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
    classes = model.metadata.classes
    out = np.empty((len(classes), max(0, region.height), max(0, region.width)), np.float32)
    if not region.area:
        return labels_from(out, classes), out
    for cell in tiles(region, tile):
        if stop is not None and stop.is_set():
            raise PredictionStopped("the prediction was stopped.")
        part = cell.intersection(region)
        target = Box(part.y - region.y, part.x - region.x, part.height, part.width)
        out[(slice(None), *target.slices())] = predict_tile(model, slide, part, frame, read_frame)
    return labels_from(out, classes), out


def labels_from(probabilities: np.ndarray, classes: Sequence[ClassDef]) -> np.ndarray:
    """Id of the most probable class, uint8 (h, w); on a tie the first in the table. `probabilities` is (K, h, w)."""
    labels = np.full(probabilities.shape[1:], classes[0].id, np.uint8)
    best = probabilities[0]
    # Plane by plane, here and in `narrowness`: along the first axis argmax and partition take several times as long.
    for c, plane in zip(classes[1:], probabilities[1:], strict=True):
        np.copyto(labels, np.uint8(c.id), where=plane > best)
        best = np.maximum(best, plane)
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


def narrowness(probabilities: np.ndarray) -> np.ndarray:
    """1 - (first - second) of (K, h, w) probabilities as uint8 (h, w): 0 certain, 255 the two likeliest are equal."""
    if len(probabilities) < 2:
        return np.zeros(probabilities.shape[1:], np.uint8)
    first, second = probabilities[0], np.zeros_like(probabilities[0])
    for plane in probabilities[1:]:
        second = np.maximum(second, np.minimum(first, plane))
        first = np.maximum(first, plane)
    scaled: np.ndarray = np.clip(np.rint((1 - (first - second)) * 255), 0, 255)
    return scaled.astype(np.uint8)
