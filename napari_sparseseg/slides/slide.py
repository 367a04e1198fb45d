"""`Slide`: a lazily read image pyramid in level-0 coordinates, whatever file it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import SlideClosedError, SlideError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.slides.identity import Identity
from napari_sparseseg.slides.pyramid import Pyramid
from napari_sparseseg.slides.regions import read_mirrored, read_region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from napari_sparseseg.slides.identity import Stamp
    from napari_sparseseg.slides.level import Level

Pixels = np.ndarray[Any, np.dtype[Any]]
Mpp = tuple[float, float]
MAX_READ = 2**32
"""Bytes that one read may return; more is a mistake in the call."""

BY_USER = "set by the user"
"""The `Slide.mpp_source` of a resolution that was assigned."""


@dataclass
class Contents:
    """What a backend found in a file: everything a `Slide` is made from."""

    path: str
    format: str
    """What the file is, for people: ``Aperio SVS``."""
    backend: str
    """What decodes it: ``tifffile``, ``openslide``, ``zarr``, ``image`` or ``array``."""
    levels: Sequence[Level]
    channels: tuple[str, ...]
    is_rgb: bool
    background: tuple[float, ...]
    fingerprint: Callable[[], str]
    close: Callable[[], None]
    colours: tuple[str | None, ...] = ()
    """``#rrggbb`` per channel where the file says one."""
    contrast: tuple[tuple[float, float] | None, ...] = ()
    """Display range per channel where the file says one."""
    mpp: Mpp | None = None
    mpp_source: str = ""
    """Where `mpp` was found: ``Aperio MPP``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    associated: dict[str, Callable[[], Pixels]] = field(default_factory=dict)
    """Label, macro and thumbnail images: read only when asked for, they may show patient data."""
    bytes: int = 0
    watched: Sequence[str] = ()
    """Files that tell by size and times that the slide was changed on disk."""
    stamp: Stamp = ()
    """Of these, from before anything was read."""


class Slide:
    """An open slide; made by `open_slide` or `ArraySlide`. Reads are thread-safe. A context manager.

    Parameters
    ----------
    contents
        What a backend found.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self.identity = Identity(contents)
        """Which slide it is; `check` finds out whether its file was changed."""
        self._pyramid = Pyramid(
            contents.path, contents.levels, contents.background, contents.close, verify=self.identity.check
        )
        self._mpp, self._mpp_source = contents.mpp, contents.mpp_source
        self._levels: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        h, w = self.shape
        return f"<Slide {self.path!r} {w} x {h} px, {self._contents.format}>"

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """File, folder or address; for arrays the name they were given."""
        return self._contents.path

    @property
    def contents(self) -> Contents:
        """What the backend found: format, colours, contrast limits, size of the file."""
        return self._contents

    @property
    def pyramid(self) -> Pyramid:
        """The levels as grids of tiles."""
        return self._pyramid

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of level 0 in pixels."""
        h, w, _ = self._pyramid.levels[0].shape
        return h, w

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        dtype: np.dtype[Any] = self._pyramid.levels[0].dtype
        return dtype

    @property
    def channels(self) -> tuple[str, ...]:
        """Names; ``("R", "G", "B")`` for colour slides."""
        return self._contents.channels

    @property
    def is_rgb(self) -> bool:
        """Whether the channels are red, green and blue of 8 bits."""
        return self._contents.is_rgb

    @property
    def background(self) -> tuple[float, ...]:
        """Colour outside the slide: white for brightfield, 0 for fluorescence, unless the file says another."""
        return self._contents.background

    @property
    def metadata(self) -> dict[str, Any]:
        """What else the file says: vendor, objective power, scan date, ICC profile present, ..."""
        return self._contents.metadata

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, mean of both axes; the first is 1."""
        return tuple((y + x) / 2 for y, x in self._pyramid.scales)

    @property
    def levels(self) -> tuple[Any, ...]:
        """One dask array (h, w, C) per level, finest first; nothing is read until it is computed."""
        if self._levels is None:
            from napari_sparseseg.slides.lazy import dask_levels

            self._levels = dask_levels(self._pyramid, interleaved=self.is_rgb)
        return self._levels

    def channel_levels(self, channel: int) -> tuple[Any, ...]:
        """One dask array (h, w) per level for one channel; of the others nothing is decoded where they are apart."""
        from napari_sparseseg.slides.lazy import dask_channel

        return dask_channel(self._pyramid, channel)

    @property
    def mpp(self) -> Mpp | None:
        """Micrometres per level-0 pixel (y, x), or None where the file does not say.

        Can be set to a number, a pair (y, x) or None.
        """
        return self._mpp

    @mpp.setter
    def mpp(self, value: float | Sequence[float] | None) -> None:
        if value is None:
            self._mpp, self._mpp_source = None, ""
        else:
            self._mpp, self._mpp_source = _pair(value), BY_USER

    @property
    def mpp_source(self) -> str:
        """Where `mpp` comes from; empty where it is not known."""
        return self._mpp_source

    @property
    def fingerprint(self) -> str:
        """Hash of the size and of samples of the content: survives a move, changes with the pixels. Hex digits."""
        return self.identity.fingerprint

    @property
    def bad_tiles(self) -> int:
        """Tiles met so far that could not be decoded; they are shown grey."""
        return len(self._pyramid.bad_tiles)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the slide, as sentences; grows when damaged tiles are met."""
        return [*self._contents.warnings, *self._pyramid.damage()]

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of further images in the file (label, macro, thumbnail)."""
        return tuple(self._contents.associated)

    def associated_image(self, name: str) -> Pixels:
        """One of the further images, (h, w, C). The label may show the patient's name.

        Raises
        ------
        SlideError
            Where there is none of that name, or after `close`.
        """
        if self.closed:
            raise SlideClosedError(f"slide {self.path} is closed; open it again to read it.")
        if name not in self._contents.associated:
            raise SlideError(
                f"slide {self.path} has no image {name!r}; it has: {', '.join(self.associated) or 'none'}."
            )
        return self._contents.associated[name]()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pyramid.closed

    def close(self) -> None:
        """Release the file and its tiles; waits for reads under way."""
        self._pyramid.close()

    def frame(self, mpp: float | None) -> Frame:
        """The slide at `mpp` um per pixel; at its own pixels where `mpp` or the slide's mpp is not known."""
        if mpp is None or self._mpp is None:
            return Frame()
        if not (math.isfinite(mpp) and mpp > 0):
            raise SlideError(f"mpp {mpp!r} is not a resolution in um per pixel.")
        return Frame((mpp / self._mpp[0], mpp / self._mpp[1]))

    def read(self, box: Box | tuple[int, int, int, int], mpp: float | None = None, level: int | None = None) -> Pixels:
        """Pixels of a level-0 box at full resolution, at `mpp`, or at a stored `level`.

        Parameters
        ----------
        box
            (y, x, height, width) in level-0 pixels; may stick out of the slide.
        mpp
            Resolution of the result in um per pixel. The size of the result is the box's, divided and rounded.
        level
            Index into `levels`; not together with `mpp`.

        Returns
        -------
        (h, w, C) of the slide's dtype, background outside the slide.

        Raises
        ------
        SlideError
            After `close`, for a bad box or level, and for `mpp` on a slide whose mpp is not known.
        """
        box = Box(*(int(v) for v in box))
        if level is None:
            if mpp is not None and self._mpp is None:
                raise SlideError(f"slide {self.path} has no mpp; set slide.mpp, then read at {mpp} um per px.")
            frame = self.frame(mpp)
            return self.read_region(frame.region(box) if mpp is not None else box, frame)
        if mpp is not None:
            raise SlideError("read() takes mpp or level, not both.")
        if not 0 <= level < len(self._pyramid.levels):
            raise SlideError(f"slide {self.path} has no level {level}; it has 0 to {len(self._pyramid.levels) - 1}.")
        region = Frame(self._pyramid.scales[level]).region(box)
        _check_box(self, region)
        return self._pyramid.read(level, region)

    def read_region(self, region: Box | tuple[int, int, int, int], frame: Frame, *, mirrored: bool = False) -> Pixels:
        """Pixels of a region of a frame, from the best level, resampled in absolute coordinates.

        Regions that overlap agree pixel for pixel. A frame pixel is the mean of the area it covers (interpolated
        linearly where the frame is finer than level 0); it is background where its centre lies outside the slide.

        Parameters
        ----------
        region
            (y, x, height, width) in pixels of the frame.
        frame
            From `frame`.
        mirrored
            Beyond its edges the slide goes on in its mirror image, for a network: where tissue is cut off by the edge
            of the picture, a border against the background looks to it like one between tissues.

        Returns
        -------
        (height, width, C) of the slide's dtype.

        Raises
        ------
        SlideError
            After `close`, and for a region of negative size or more than 4 GB.
        """
        region = Box(*region)
        _check_box(self, region)
        return (read_mirrored if mirrored else read_region)(self._pyramid, region, frame)

    def thumbnail(self, max_side: int = 1024) -> tuple[Pixels, Frame]:
        """The whole slide, at most `max_side` pixels on its longer side, and its frame."""
        frame = Frame((max(1.0, max(self.shape) / max_side),) * 2)
        return self.read_region(Box(0, 0, *frame.shape(self.shape)), frame), frame


def _pair(mpp: float | Sequence[float]) -> Mpp:
    pair = (mpp, mpp) if isinstance(mpp, (int, float)) else tuple(mpp)
    if len(pair) != 2 or not all(math.isfinite(v) and v > 0 for v in pair):
        raise SlideError(f"mpp {mpp!r} is not a resolution; give um per pixel, or a pair (y, x).")
    return float(pair[0]), float(pair[1])


def _check_box(slide: Slide, box: Box) -> None:
    if box.height < 0 or box.width < 0:
        raise SlideError(f"box {tuple(box)} has a negative height or width; a box is (y, x, height, width).")
    size = box.height * box.width * len(slide.channels) * slide.dtype.itemsize
    if size > MAX_READ:
        raise SlideError(f"box {tuple(box)} would take {size / 2**30:.0f} GB; read it in parts, or at a coarser mpp.")
