"""OpenSlide, for formats that tifffile does not read: MRXS, VMS, DICOM, BIF, and unusual TIFFs."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.geometry import Box
from napari_sparseseg.slides.identity import file_fingerprint
from napari_sparseseg.slides.level import RGB, Level, Pixels, TileError, over
from napari_sparseseg.slides.resolution import Claim, number
from napari_sparseseg.slides.slide import SlideContents

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK = 512
"""Side of a block in pixels: OpenSlide costs 1 ms per call and 20 ms per million pixels."""


class _Handle:
    """An OpenSlide handle that is reopened after an error, because one failed read makes a handle unusable."""

    def __init__(self, path: str) -> None:
        self.path, self._lock = path, threading.Lock()
        self._slide = openslide.OpenSlide(path)
        self.properties: dict[str, str] = {}
        for name in self._slide.properties:
            with contextlib.suppress(KeyError):  # damaged files list names that OpenSlide does not find
                self.properties[name] = self._slide.properties[name]

    @property
    def slide(self) -> Any:
        return self._slide

    def read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        slide = self._slide
        try:
            return np.asarray(slide.read_region(location, level, size))
        except openslide.OpenSlideError as error:
            with self._lock:
                if self._slide is slide:
                    self._slide = openslide.OpenSlide(self.path)
            raise TileError(str(error)) from error

    def close(self) -> None:
        self._slide.close()


class OpenSlideLevel(Level):
    """Blocks of one level of OpenSlide."""

    def __init__(self, handle: _Handle, k: int, background: tuple[float, ...], area: Box | None) -> None:
        w, h = handle.slide.level_dimensions[k]
        self._downsample = float(handle.slide.level_downsamples[k])
        if area:
            h, w = (max(1, math.ceil(n / self._downsample - 1e-6)) for n in (area.height, area.width))
        super().__init__((h, w, 3), np.uint8, (BLOCK, BLOCK), 3)
        self._handle, self._k, self._background = handle, k, background
        self._origin = (area.x, area.y) if area else (0, 0)

    def decode(self, plane: int, row: int, column: int) -> Pixels:
        del plane
        y, x, h, w = self.extent(row, column)
        location = (self._origin[0] + round(x * self._downsample), self._origin[1] + round(y * self._downsample))
        return over(self._handle.read(location, self._k, (w, h)), self._background)


def open_openslide(path: str, first: SlideOpenError | None = None, *, crop: bool = True) -> SlideContents:
    """Open with OpenSlide.

    Parameters
    ----------
    path
        The file.
    first
        Why another backend refused it; raised again if OpenSlide refuses it too.
    crop
        Whether to crop to the scanned area, if the file specifies one.

    Raises
    ------
    SlideOpenError
        If OpenSlide does not support the format, or the file is damaged.
    """
    try:
        handle = _Handle(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise first or SlideOpenError(
            path, "its format is not supported", "Slides are SVS, TIFF, OME-Zarr, MRXS, DICOM, PNG, JPEG, ..."
        ) from error
    except openslide.OpenSlideError as error:
        raise first or SlideOpenError(path, f"OpenSlide says: {error}", "Copy or export it again.") from error
    said = handle.properties
    colour = said.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
    background = tuple(float(int(colour[i : i + 2], 16)) for i in (0, 2, 4))
    area = _area(said, handle.slide.dimensions)
    contents = SlideContents(
        path=path,
        format=f"OpenSlide {said.get(openslide.PROPERTY_NAME_VENDOR, 'unknown vendor')}",
        backend="openslide",
        levels=[OpenSlideLevel(handle, k, background, area if crop else None) for k in range(handle.slide.level_count)],
        channels=RGB,
        crop=crop,
        is_rgb=True,
        background=background,
        fingerprint=lambda: file_fingerprint(path),
        close=handle.close,
        bytes=os.path.getsize(path),
        associated=tuple(handle.slide.associated_images),
    )
    _describe(contents, said)
    if area:
        w, h = handle.slide.dimensions
        contents.bounds = Box(0, 0, area.height, area.width) if crop else area
        contents.canvas = Box(-area.y, -area.x, h, w) if crop else Box(0, 0, h, w)
    return contents


def _describe(contents: SlideContents, said: Mapping[str, str]) -> None:
    y, x = (number(said.get(key)) for key in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X))
    contents.set_resolution([Claim("openslide.mpp-y, openslide.mpp-x", y, x)])
    power = number(said.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    if power:
        contents.metadata["objective_power"] = power
    if said.get("openslide.icc-size"):
        contents.metadata["icc_profile_bytes"] = int(said["openslide.icc-size"])


def _area(said: Mapping[str, str], dimensions: tuple[int, int]) -> Box | None:
    """The scanned area in level-0 pixels of the canvas, if the file specifies a smaller one than the canvas."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
    )
    values = [number(said.get(name)) for name in names]
    if any(v is None for v in values):
        return None
    whole = Box(0, 0, dimensions[1], dimensions[0])
    area = Box(*(int(v or 0) for v in values)).intersection(whole)
    return area if 0 < area.area < whole.area else None
