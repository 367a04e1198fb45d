"""Where a label image lies on its slide, for the metadata of every output format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_sparseseg.geometry import Frame


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
