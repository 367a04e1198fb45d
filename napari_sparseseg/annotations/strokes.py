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
    dy, dx = frame.downsample
    parts = [part / (dy, dx) for part in stroke.parts()]
    if stroke.kind not in ("brush", "erase"):
        return Polygon(parts).mask(region)
    out = np.zeros((region.height, region.width), bool)
    radius = max(stroke.radius, MIN_RADIUS) / dy
    for part in parts:
        for p, q in zip(part, part[1:] if len(part) > 1 else part, strict=False):
            box, mask = capsule_mask(p, q, radius, region, aspect=dx / dy)
            view = out[box.y - region.y : box.y1 - region.y, box.x - region.x : box.x1 - region.x]
            view |= mask
    return out
