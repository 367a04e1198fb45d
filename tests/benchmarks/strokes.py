"""Strokes as a person would draw them, from a dense truth: random walks inside one class, repeatable from a seed.

Two hands: `centre` keeps away from the border, as most people do; `border` follows it at a small distance, as people do
who correct mistakes. What is learned from the two differs, so results say which hand drew.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

Hand = Literal["centre", "border"]
CHOICES = 8
"""Directions weighed at every step."""


def depth_inside(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the outside of the mask or of the picture, float64 (h, w)."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def stroke(
    depth: np.ndarray,
    rng: np.random.Generator,
    *,
    radius: float,
    length: float,
    hand: Hand = "centre",
    start: tuple[float, float] | None = None,
) -> np.ndarray | None:
    """One stroke within a class.

    Parameters
    ----------
    depth
        `depth_inside` of the class's mask.
    rng
        The same state gives the same stroke.
    radius
        Of the brush, pixels; the whole brush stays inside.
    length
        Of the walk, pixels; shorter where the class ends.
    hand
        ``centre`` or ``border``.
    start
        (y, x); drawn where it is not given.

    Returns
    -------
    ndarray or None
        Points (n, 2), (y, x) in pixels; None where the class is narrower than the brush.
    """
    wish = radius * 1.5 + 1
    if start is None:
        places = np.argwhere(depth > radius)
        if not len(places):
            return None
        if hand == "border":
            near = places[depth[tuple(places.T)] < 2 * wish]
            places = near if len(near) else places
        start = tuple(places[rng.integers(len(places))].astype(float))
    at, heading, step = np.array(start, float), rng.uniform(0, 2 * np.pi), max(2.0, radius)
    points = [at]
    for _ in range(int(length / step)):
        headings = heading + rng.normal(0, 0.6, CHOICES)
        ahead = at + step * np.stack([np.sin(headings), np.cos(headings)], 1)
        cells = np.rint(ahead).astype(int)
        within = ((cells >= 0) & (cells < depth.shape)).all(axis=1)
        room = np.where(within, depth[tuple(cells.clip(0, np.array(depth.shape) - 1).T)], 0)
        if room.max() <= radius:
            break
        liking = np.minimum(room, 6 * radius) if hand == "centre" else -np.abs(room - wish)
        liking = np.where(room > radius, liking + rng.uniform(0, step, CHOICES), -np.inf)
        best = int(np.argmax(liking))
        at, heading = ahead[best], headings[best]
        points.append(at)
    return np.clip(np.array(points), 0, np.array(depth.shape) - 1)


def strokes_per_class(labels: np.ndarray, total: int, least: int = 2) -> dict[int, int]:
    """How many strokes each class gets: in proportion to its area, as a person who scribbles what there is."""
    counts = np.bincount(labels.ravel(), minlength=256)
    ids = np.flatnonzero(counts[1:]) + 1
    return {int(c): max(least, round(total * counts[c] / counts[ids].sum())) for c in ids}
