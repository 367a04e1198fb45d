"""What has been labelled, and what the chosen balancing makes of it: the numbers behind the class table and its bar."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.config import Balancing
    from napari_sparseseg.geometry import Frame

MOST_PATCHES = 256
"""Patches counted per slide; of more an evenly spaced choice stands for all."""


@dataclass(frozen=True)
class LabelStatistics:
    """Labels of all training slides.

    Parameters
    ----------
    strokes, pixels
        Per class id: strokes drawn, labelled level-0 pixels.
    patches
        int64 (P, 256): labelled pixels of each class in each labelled patch, at the training resolution.
    """

    strokes: dict[int, int]
    pixels: dict[int, int]
    patches: np.ndarray

    @classmethod
    def nothing(cls) -> LabelStatistics:
        """Before anything was counted."""
        return cls({}, {}, np.zeros((0, 256), np.int64))

    @property
    def labelled(self) -> tuple[int, ...]:
        """Ids of the classes that have labels."""
        return tuple(sorted(c for c, n in self.pixels.items() if n))

    def pixel_share(self, class_id: int) -> float:
        """Share of all labelled pixels, 0..1."""
        total = sum(self.pixels.values())
        return self.pixels.get(class_id, 0) / total if total else 0.0

    def loss_shares(self, balancing: Balancing) -> dict[int, float]:
        """Expected share of every class in the loss, summing to 1; see `napari_sparseseg.balancing`.

        For ``mini-batch`` it is the share in a batch that holds all classes.
        """
        present = self.patches > 0
        if not present.any():
            return {}
        if balancing == "none":
            shares = self.patches.sum(axis=0) / self.patches.sum()
        elif balancing == "instance":
            shares = (present / present.sum(axis=1, keepdims=True)).mean(axis=0)
        else:
            seen = present.any(axis=0)
            shares = seen / seen.sum()
        return {int(c): float(shares[c]) for c in np.flatnonzero(shares)}


def label_statistics(labels: Sequence[tuple[Snapshot, Frame]], patch_px: int) -> LabelStatistics:
    """Count frozen annotations; takes up to a second for thousands of strokes, so call it off the GUI thread.

    Parameters
    ----------
    labels
        Annotations of each training slide with the frame that training sees it in.
    patch_px
        Side of a training patch in pixels of the frame.
    """
    strokes: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    rows = []
    for snapshot, frame in labels:
        strokes.update(s.class_id for s in snapshot.strokes if s.kind != "erase")
        pixels.update(snapshot.counts())
        cells = snapshot.occupied(frame, patch_px)
        for cell in cells[:: -(-len(cells) // MOST_PATCHES) or 1]:
            counts = np.bincount(snapshot.read_region(cell, frame).ravel(), minlength=256)
            counts[0] = 0
            if counts.any():
                rows.append(counts)
    patches = np.stack(rows) if rows else LabelStatistics.nothing().patches
    return LabelStatistics(dict(strokes), dict(pixels), patches)
