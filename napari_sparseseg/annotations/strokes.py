"""Strokes and dense regions as vectors, for training and for the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_sparseseg.annotations.raster import MIN_RADIUS, Polygon, capsule_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.geometry import Box, Frame

    Kind = Literal["brush", "erase", "polygon", "fill", "dense"]
    Mask = NDArray[np.bool_]

KINDS = ("brush", "erase", "polygon", "fill", "dense")


@dataclass(frozen=True, slots=True, eq=False)
class Stroke:
    """One drawing command.

    Attributes
    ----------
    id
        Unique within the annotations, ascending in the order of drawing.
    kind
        ``brush`` and ``erase``: `points` are joined one after the other by a brush of `radius`. ``polygon``: `points`
        are the corners. ``fill``: without an outline (bucket, label image); `points` are the corners of its box.
        ``dense``: a dense region; its pixels without a scribble are of `class_id`.
    class_id
        0 where it erases.
    radius
        Level-0 pixels; 0 for kinds without a brush.
    points
        (N, 2) float32 (y, x), level 0, pixel (i, j) covering [i, i + 1) x [j, j + 1).
    rings
        Points of every ring of a polygon (outline, then holes), or of every run of a brush; empty: one run.
    box
        Level-0 pixels that it may have changed.
    """

    id: int
    kind: str
    class_id: int
    radius: float
    points: NDArray[np.float32]
    box: Box
    rings: tuple[int, ...] = ()

    @classmethod
    def of_rings(cls, number: int, kind: str, class_id: int, rings: Sequence[NDArray[np.float64]], box: Box) -> Stroke:
        """A stroke of one or more rings or runs, with radius 0."""
        points = (np.concatenate(rings) if len(rings) > 1 else rings[0]).astype(np.float32)
        return cls(number, kind, class_id, 0.0, points, box, tuple(map(len, rings)) if len(rings) > 1 else ())

    def parts(self) -> list[NDArray[np.float64]]:
        """The rings of a polygon or the runs of a brush, (n, 2) each."""
        points = self.points.astype(np.float64)
        return np.split(points, np.cumsum(self.rings)[:-1]) if self.rings else [points]


DenseRegion = Stroke
"""A stroke of kind ``dense``."""


def stroke_mask(stroke: Stroke, region: Box, frame: Frame) -> Mask:
    """The pixels that a stroke covers.

    Parameters
    ----------
    stroke
        One of `Snapshot.strokes` or `Snapshot.dense_regions`.
    region
        Box in pixels of `frame`.
    frame
        A pixel is covered if its centre is.

    Returns
    -------
    mask
        Bool (region.height, region.width).
    """
    parts = [part / frame.downsample for part in stroke.parts()]
    if stroke.kind in ("brush", "erase"):
        return _brush_mask(parts, max(stroke.radius, MIN_RADIUS), region, frame)
    return Polygon(parts).mask(region)


def _brush_mask(parts: Sequence[NDArray[np.float64]], radius: float, region: Box, frame: Frame) -> Mask:
    out = np.zeros((region.height, region.width), bool)
    dy, dx = frame.downsample
    # Measured in rows: a brush is round on the slide, so with unequal steps x is stretched to the step of y.
    stretch = dx / dy
    for part in parts:
        for p, q in zip(part, part[1:] if len(part) > 1 else part, strict=False):
            if stretch == 1.0:
                box, mask = capsule_mask(p, q, radius / dy, region)
            else:
                box, mask = _stretched(p, q, radius / dy, stretch, region)
            view = out[box.y - region.y : box.y1 - region.y, box.x - region.x : box.x1 - region.x]
            view |= mask
    return out


def _stretched(
    p: NDArray[np.float64], q: NDArray[np.float64], radius: float, stretch: float, region: Box
) -> tuple[Box, Mask]:
    """`capsule_mask` in a frame whose pixels are not square."""
    rows = np.arange(region.y, region.y1) + 0.5
    columns = (np.arange(region.x, region.x1) + 0.5) * stretch
    a, b = p * (1, stretch), q * (1, stretch)
    d = b - a
    py, px = (rows - a[0])[:, None], (columns - a[1])[None, :]
    along = np.clip((py * d[0] + px * d[1]) / max(float(d @ d), 1e-12), 0, 1)
    return region, (py - along * d[0]) ** 2 + (px - along * d[1]) ** 2 <= radius**2
