"""A model whose answer is known for every pixel."""

from __future__ import annotations

import numpy as np

from napari_sparseseg.config import make_classes
from napari_sparseseg.learning.model_file import ModelMetadata
from tests.helpers.learning_scene import CLASSES


class Halves:
    """Class 1 left of a column, class 2 from there on, whatever the pixels are."""

    halo, size_divisor = 0, 1

    def __init__(self, column: int, classes=CLASSES) -> None:
        self.column, self.metadata = column, ModelMetadata(make_classes(classes), 1.0, "none")

    def probabilities(self, pixels, *, origin=(0, 0)):
        out = np.zeros((len(self.metadata.classes), *pixels.shape[:2]), np.float32)
        right = np.arange(origin[1], origin[1] + pixels.shape[1]) >= self.column
        out[1] = right
        out[0] = ~right
        return out
