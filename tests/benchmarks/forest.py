"""The baseline: a random forest on multiscale filters, as ilastik, Labkit, Weka and QuPath offer it.

scikit-image's "trainable segmentation" features with 100 trees, depth 20, balanced class weights. Other settings were
not searched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

if TYPE_CHECKING:
    from collections.abc import Sequence


class Forest:
    """Fits on strokes, predicts fields.

    Parameters
    ----------
    seed
        Of the trees.
    threads
        For features and trees alike.
    """

    def __init__(self, seed: int = 0, threads: int = 1) -> None:
        self._threads = threads
        self.trees = RandomForestClassifier(
            100, max_depth=20, class_weight="balanced", n_jobs=threads, random_state=seed
        )

    def fit(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Forest:
        """Learn from images (h, w, 3) uint8 and labels (h, w), 0 = unlabelled."""
        rows, classes = [], []
        for image, known in zip(images, labels, strict=True):
            if known.any():
                rows.append(self.features(image)[known > 0])
                classes.append(known[known > 0])
        self.trees.fit(np.concatenate(rows), np.concatenate(classes))
        return self

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids uint8 (h, w)."""
        features = self.features(image)
        found: np.ndarray = self.trees.predict(features.reshape(-1, features.shape[-1]))
        return found.reshape(image.shape[:2]).astype(np.uint8)

    def features(self, image: np.ndarray) -> np.ndarray:
        """float32 (h, w, F): intensity, edges, texture per channel at sigma 1 to 16."""
        # By position, since the name of the last one changed in scikit-image 0.26.
        settings = (True, True, True, 1, 16, None, self._threads)
        found: np.ndarray = multiscale_basic_features(image, *settings, channel_axis=-1)
        return found
