"""A small real segmenter without a network: what region prediction is tested with, and against.

Pixels are averaged over cells of `multiple` px, smoothed over a known number of cells, and compared with one colour per
class. Like a network it has a finite receptive field, a stride whose phase matters, and an answer for every pixel;
unlike one it is exact, so tiled and untiled answers can be compared bit by bit.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import tifffile
import zarr
from safetensors.numpy import save_file

from napari_sparseseg.config import make_classes
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.slides import ArraySlide

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = make_classes([("glass", "#ffffff"), ("stroma", "#3cb44b"), ("nuclei", "#911eb4")])
COLOURS = ((240, 240, 240), (215, 150, 190), (110, 70, 140))
LEVELS = 64
"""Smoothed values are integers in 1/64 grey levels: sums of integers do not depend on their order."""


class SmoothModel:
    """Nearest mean colour after smoothing over `2 * radius + 1` cells of `multiple` px."""

    def __init__(self, size_divisor=4, radius=2, mpp=None, colours=COLOURS, classes=CLASSES, delay=0.0):
        self.size_divisor, self.radius = size_divisor, radius
        self.halo = size_divisor * (radius + 1)
        self.metadata = ModelMetadata(classes=classes, mpp=mpp, encoder="smooth")
        self.colours = np.asarray(colours, np.float32)
        self.delay = delay
        self.calls = 0
        self._lock = threading.Lock()

    def probabilities(self, pixels, *, origin=(0, 0)):
        m, r = self.size_divisor, self.radius
        h, w, c = pixels.shape
        if h % m or w % m or origin[0] % m or origin[1] % m:
            raise ValueError(f"{pixels.shape} at {origin} is not aligned to {m}")
        with self._lock:
            self.calls += 1
        if self.delay:
            time.sleep(self.delay)
        cells = pixels.astype(np.int64).reshape(h // m, m, w // m, m, c).sum(axis=(1, 3)) * LEVELS // (m * m)
        padded = np.pad(cells, ((r, r), (r, r), (0, 0)), mode="edge")
        for axis in (0, 1):
            n = padded.shape[axis] - 2 * r
            padded = sum(np.take(padded, range(k, k + n), axis=axis) for k in range(2 * r + 1))
        mean = (padded // (2 * r + 1) ** 2).astype(np.float32) / LEVELS
        distance = np.stack([((mean - colour) ** 2).sum(axis=-1) for colour in self.colours]) / 2000
        weight = np.exp(distance.min(axis=0) - distance)
        return np.repeat(np.repeat(weight / weight.sum(axis=0), m, axis=1), m, axis=2).astype(np.float32)

    def save(self, path: Path) -> None:
        settings = np.array([self.size_divisor, self.radius], np.int32)
        save_file({"colours": self.colours, "settings": settings}, path)


def write_tall_slide(path: Path) -> Path:
    """A slide file of 7200 x 160 px and 0.5 um per px: coloured blocks with noise, four shards."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 3, (180, 4))
    image = SmoothModel().colours[np.kron(blocks, np.ones((40, 40), int))] + rng.normal(0, 8, (7200, 160, 3))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    return path


def level0(path: Path) -> np.ndarray:
    group = zarr.open_group(path, mode="r")
    return group[group.attrs["multiscales"][0]["datasets"][0]["path"]][:]


def patches_slide(shape=(900, 1300), mpp=0.5) -> ArraySlide:
    """Blocks of the three class colours with noise: all classes, sharp borders, known truth."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 3, (-(-shape[0] // 100), -(-shape[1] // 100)))
    truth = np.kron(blocks, np.ones((100, 100), int))[: shape[0], : shape[1]]
    image = SmoothModel().colours[truth] + rng.normal(0, 8, (*shape, 3))
    slide = ArraySlide(np.clip(image, 0, 255).astype(np.uint8), mpp=mpp, name="patches")
    slide.truth = truth + 1
    return slide
