"""Boxes, frames and tile grids; all half open and in (y, x) order.

A `Box` is in level-0 pixels unless stated otherwise. A `Frame` is the coordinate frame of the slide resampled by one
downsample factor per axis: frame pixel (i, j) covers the level-0 area [i * dy, (i + 1) * dy) x [j * dx, (j + 1) * dx).
A *region* is a box in frame pixels. Frames share the origin of level 0, so overlapping regions agree pixel for pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Box(NamedTuple):
    """Half-open rectangle (y, x, height, width). Functions that take a Box also accept any four integers."""

    y: int
    x: int
    height: int
    width: int

    @property
    def y1(self) -> int:
        """One past the last row (exclusive)."""
        return self.y + self.height

    @property
    def x1(self) -> int:
        """One past the last column (exclusive)."""
        return self.x + self.width

    @property
    def area(self) -> int:
        """Number of pixels; 0 if either side is empty."""
        return max(0, self.height) * max(0, self.width)

    def grown(self, margin: int) -> Box:
        """The box enlarged by `margin` pixels on each side."""
        return Box(self.y - margin, self.x - margin, self.height + 2 * margin, self.width + 2 * margin)

    def intersection(self, other: Box) -> Box:
        """The overlap; its height or width is 0 if there is none."""
        y, x = max(self.y, other.y), max(self.x, other.x)
        return Box(y, x, max(0, min(self.y1, other.y1) - y), max(0, min(self.x1, other.x1) - x))

    def union(self, other: Box) -> Box:
        """The smallest box that contains both."""
        y, x = min(self.y, other.y), min(self.x, other.x)
        return Box(y, x, max(self.y1, other.y1) - y, max(self.x1, other.x1) - x)

    def contains(self, other: Box) -> bool:
        """Whether `other` lies entirely inside."""
        return self.y <= other.y and self.x <= other.x and other.y1 <= self.y1 and other.x1 <= self.x1

    def slices(self) -> tuple[slice, slice]:
        """Row and column slices of the box, for arrays in the same frame."""
        return slice(self.y, self.y1), slice(self.x, self.x1)


@dataclass(frozen=True, slots=True)
class Frame:
    """Coordinate frame of the slide resampled by `downsample` = (dy, dx) level-0 pixels per frame pixel."""

    downsample: tuple[float, float] = (1.0, 1.0)

    def shape(self, level0_shape: tuple[int, int]) -> tuple[int, int]:
        """Shape (h, w) in frame pixels that covers a level-0 image; the last row and column may extend past it."""
        h, w = (max(1, math.ceil(n / d - 1e-6)) for n, d in zip(level0_shape, self.downsample, strict=True))
        return h, w

    def region(self, box: Box | tuple[int, int, int, int]) -> Box:
        """The region nearest to a level-0 box: origin and size rounded, at least one pixel a side."""
        y, x, h, w = box
        dy, dx = self.downsample
        return Box(round(y / dy), round(x / dx), max(1, round(h / dy)), max(1, round(w / dx)))

    def cover(self, box: Box | tuple[int, int, int, int]) -> Box:
        """The smallest region that covers a level-0 box."""
        y, x, h, w = box
        dy, dx = self.downsample
        y0, x0 = math.floor(y / dy + 1e-9), math.floor(x / dx + 1e-9)
        return Box(y0, x0, math.ceil((y + h) / dy - 1e-9) - y0, math.ceil((x + w) / dx - 1e-9) - x0)

    def level0(self, region: Box) -> Box:
        """The smallest level-0 box that covers a region."""
        dy, dx = self.downsample
        y0, x0 = math.floor(region.y * dy + 1e-9), math.floor(region.x * dx + 1e-9)
        return Box(y0, x0, math.ceil(region.y1 * dy - 1e-9) - y0, math.ceil(region.x1 * dx - 1e-9) - x0)


@dataclass(frozen=True, slots=True)
class Placement:
    """A label image of the given frame, laid over level 0 of a slide of the given mpp."""

    frame: Frame
    mpp: tuple[float, float] | None
    """Level-0 pixel size (y, x) in um; None where unknown, lengths are then in level-0 pixels."""

    @property
    def slide_pixel(self) -> tuple[float, float]:
        """Size of a level-0 pixel (y, x) in um, or (1, 1)."""
        return self.mpp or (1.0, 1.0)

    @property
    def spacing(self) -> tuple[float, float]:
        """Size of a pixel of the label image (y, x), in um or level-0 pixels."""
        dy, dx = self.frame.downsample
        return dy * self.slide_pixel[0], dx * self.slide_pixel[1]

    @property
    def pixel_area(self) -> float:
        """Area of a pixel of the label image in um^2 or level-0 px^2."""
        return self.spacing[0] * self.spacing[1]

    def pyramid_spacing(self, level: int) -> tuple[float, float]:
        """Pixel size of a pyramid level that is halved `level` times."""
        return self.spacing[0] * 2**level, self.spacing[1] * 2**level

    def pyramid_origin(self, level: int) -> tuple[float, float]:
        """Centre of pixel (0, 0) of that level, measured from the centre of level-0 pixel (0, 0) of the slide.

        All levels share the slide's outer corner, so centres of larger pixels lie further in; readers that take
        coordinates as pixel centres (OME-NGFF, napari) need this shift.
        """
        y, x = self.pyramid_spacing(level)
        return (y - self.slide_pixel[0]) / 2, (x - self.slide_pixel[1]) / 2


def tiles(region: Box, size: int) -> Iterator[Box]:
    """Cells of the grid of `size` pixels from the origin that intersect `region`, row by row, not clipped to it."""
    for i in range(region.y // size, -(-region.y1 // size)):
        for j in range(region.x // size, -(-region.x1 // size)):
            yield Box(i * size, j * size, size, size)
