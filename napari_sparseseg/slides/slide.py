"""`Slide`: a lazily read image pyramid in level-0 coordinates, independent of the file format."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.errors import SlideError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.slides.identity import Identity
from napari_sparseseg.slides.pyramid import Pyramid
from napari_sparseseg.slides.resample import read_mirrored, read_region
from napari_sparseseg.slides.resolution import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from napari_sparseseg.slides.identity import Stamp
    from napari_sparseseg.slides.level import Level
    from napari_sparseseg.slides.resolution import Claim, Mpp

Pixels = np.ndarray[Any, np.dtype[Any]]
MAX_READ = 2**32
"""Largest result of one read in bytes; a larger request is taken for a mistake."""

BY_USER = "set by the user"
"""`Slide.mpp_source` of a resolution that was assigned to `Slide.mpp`."""


class ImageInfo(NamedTuple):
    """One of the images in a file."""

    name: str
    width: int
    """In pixels."""
    height: int


@dataclass
class SlideContents:
    """What a backend found in a file: everything that a `Slide` is built from."""

    path: str
    format: str
    """Name of the format for display: ``Aperio SVS``."""
    backend: str
    """The decoder: ``tifffile``, ``openslide``, ``zarr``, ``image`` or ``array``."""
    levels: Sequence[Level]
    channels: tuple[str, ...]
    is_rgb: bool
    background: tuple[float, ...]
    fingerprint: Callable[[], str]
    close: Callable[[], None]
    colours: tuple[str | None, ...] = ()
    """``#rrggbb`` per channel, None if the file does not specify one."""
    contrast: tuple[tuple[float, float] | None, ...] = ()
    """Display range per channel, None if the file does not specify one."""
    mpp: Mpp | None = None
    mpp_source: str = ""
    """Source of `mpp`: ``Aperio MPP``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    associated: tuple[str, ...] = ()
    """Names of the label, macro and thumbnail images. They are read on request only: they may show patient data."""
    images: tuple[ImageInfo, ...] = ()
    """The images that `open_slide` can open, in the order of their numbers; empty if there is only one."""
    image: int = 0
    """Number of the opened image."""
    crop: bool = True
    """Whether the slide was to be cropped to the scanned area."""
    bounds: Box | None = None
    """The scanned area in level-0 pixels, if the file specifies one."""
    canvas: Box | None = None
    """The whole canvas of the file in level-0 pixels, if the file specifies a scanned area."""
    bytes: int = 0
    """Size of the file."""
    watched: Sequence[str] = ()
    """Files whose size and times change when the slide is changed on disk."""
    stamp: Stamp = ()
    """`file_stamp` of these from before anything was read."""

    def set_resolution(self, claims: Iterable[Claim]) -> None:
        """Choose `mpp` from what the file says, most trusted first; conflicts become warnings."""
        self.mpp, self.mpp_source, warnings = resolve(claims)
        self.warnings += warnings

    def set_images(self, images: Sequence[ImageInfo], image: int, *, chosen: bool) -> None:
        """List the images of the file; unless the user has `chosen` one, a warning lists the others."""
        self.image = image
        if len(images) < 2:
            return
        self.images = tuple(images)
        if not chosen:
            others = [f"{k} ({_image_text(i)})" for k, i in enumerate(images) if k != image]
            rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
            self.warnings.append(
                f"it contains {len(images)} images; image {image} ({_image_text(images[image])}) is open. "
                f"Others: {', '.join(others[:5])}{rest}; choose one by its number (panel, --image or image=)"
            )


def _image_text(image: ImageInfo) -> str:
    return f"{image.name + ', ' if image.name else ''}{image.width} x {image.height} px"


class Slide:
    """An open slide; made by `open_slide` or `ArraySlide`. Reads are thread-safe. A context manager.

    Parameters
    ----------
    contents
        What a backend found.

    Attributes
    ----------
    contents : SlideContents
        What the backend found: format, colours, contrast limits, size of the file.
    identity : Identity
        The slide's fingerprint; `identity.check` detects a file that was changed on disk.
    pyramid : Pyramid
        The levels as grids of tiles.
    path : str
        File, folder or address; for arrays, their name.
    channels : tuple of str
        Channel names; ``("R", "G", "B")`` for colour slides.
    is_rgb : bool
        Whether the channels are red, green and blue of 8 bits.
    background : tuple of float
        Colour outside the slide, one value per channel: white for brightfield and 0 for fluorescence by default.
    metadata : dict
        Further facts from the file: objective power, scan date, size of the ICC profile, ...

    Examples
    --------
    >>> from napari_sparseseg import open_slide
    >>> from napari_sparseseg.samples import sample_slide
    >>> with open_slide(sample_slide()) as slide:
    ...     slide.shape, slide.mpp, slide.read((0, 0, 1000, 500), mpp=1.0).shape
    ((4096, 4096), (0.5, 0.5), (500, 250, 3))
    """

    def __init__(self, contents: SlideContents) -> None:
        self.contents, self.identity = contents, Identity(contents)
        self.pyramid = Pyramid(
            contents.path, contents.levels, contents.background, contents.close, verify=self.identity.check
        )
        self.path, self.channels, self.is_rgb = contents.path, contents.channels, contents.is_rgb
        self.background, self.metadata = contents.background, contents.metadata
        self._mpp, self._mpp_source = contents.mpp, contents.mpp_source
        self._levels: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        h, w = self.shape
        return f"<Slide {self.path!r} {w} x {h} px, {self.contents.format}>"

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of level 0 in pixels."""
        h, w, _ = self.pyramid.levels[0].shape
        return h, w

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        dtype: np.dtype[Any] = self.pyramid.levels[0].dtype
        return dtype

    @property
    def downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, mean of both axes (OpenSlide's `level_downsamples`)."""
        return tuple((y + x) / 2 for y, x in self.pyramid.scales)

    @property
    def levels(self) -> tuple[Any, ...]:
        """One lazy dask array (h, w, C) per level, finest first."""
        if self._levels is None:
            from napari_sparseseg.slides.lazy import dask_levels

            self._levels = dask_levels(self.pyramid, interleaved=self.is_rgb)
        return self._levels

    def channel_levels(self, channel: int) -> tuple[Any, ...]:
        """One lazy dask array (h, w) per level for one channel; others are not decoded if stored separately."""
        from napari_sparseseg.slides.lazy import dask_levels

        return dask_levels(self.pyramid, channel=channel)

    @property
    def mpp(self) -> Mpp | None:
        """Micrometres per level-0 pixel (y, x); None if unknown. Can be set to a number, a pair (y, x) or None.

        Raises
        ------
        SlideError
            If it is set to something else.
        """
        return self._mpp

    @mpp.setter
    def mpp(self, value: float | Sequence[float] | None) -> None:
        if value is None:
            self._mpp, self._mpp_source = None, ""
        else:
            self._mpp, self._mpp_source = _pair(value), BY_USER

    def restore_mpp(self) -> None:
        """Use the mpp that the file says again."""
        self._mpp, self._mpp_source = self.contents.mpp, self.contents.mpp_source

    @property
    def mpp_source(self) -> str:
        """Source of `mpp`: ``Aperio MPP``, ``set by the user``, ...; empty if it is unknown."""
        return self._mpp_source

    @property
    def fingerprint(self) -> str:
        """Hash (hex digits) of the size and of samples of the content: survives a move, changes with the pixels."""
        return self.identity.fingerprint

    @property
    def bad_tiles(self) -> int:
        """Number of tiles so far that could not be decoded; they are grey."""
        return len(self.pyramid.bad_tiles)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of the slide as sentences; grows when damaged tiles are read."""
        # parts of them come from the file
        return tuple(" ".join(w.split()) for w in (*self.contents.warnings, *self.pyramid.damage()))

    @property
    def images(self) -> tuple[ImageInfo, ...]:
        """The images in the file, by the numbers that `open_slide` takes; empty if there is only one."""
        return self.contents.images

    @property
    def image(self) -> int | None:
        """Number of the opened image; None if the file contains only one."""
        return self.contents.image if self.contents.images else None

    @property
    def bounds(self) -> Box:
        """The scanned area in level-0 pixels, the frame of QuPath; the whole slide unless the file specifies one."""
        return self.contents.bounds or Box(0, 0, *self.shape)

    @property
    def canvas(self) -> Box:
        """The file's whole canvas in level-0 pixels: the frame of OpenSlide and ASAP.

        Slides are cropped to the scanned area, so its origin is negative if the area starts inside the canvas.
        """
        return self.contents.canvas or Box(0, 0, *self.shape)

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of other images in the file (label, macro, thumbnail)."""
        return self.contents.associated

    def read_associated(self, name: str) -> Pixels:
        """One of the `associated` images, uint8 (h, w, 3). A label may show the name of a patient.

        Raises
        ------
        SlideError
            Where there is none of that name, or it cannot be read.
        """
        from napari_sparseseg.slides.backends.associated import read_associated

        if name not in self.associated:
            raise SlideError(f"{self.path} has no {name}; it has: {', '.join(self.associated) or 'none'}.")
        return read_associated(self.path, name)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.pyramid.closed

    def close(self) -> None:
        """Wait for active reads, then release the file and its cached tiles."""
        self.pyramid.close()

    def frame(self, mpp: float | None) -> Frame:
        """Frame of the slide at `mpp` um per pixel; the level-0 frame if `mpp` or the slide's mpp is None.

        Raises
        ------
        SlideError
            If `mpp` is not positive and finite.
        """
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
            (y, x, height, width) in level-0 pixels; may extend past the slide.
        mpp
            Resolution of the result in um per pixel. Its size is the size of the box, divided and rounded.
        level
            Index into `levels`; not together with `mpp`.

        Returns
        -------
        Array (h, w, C) of the slide's dtype; background outside the slide.

        Raises
        ------
        SlideError
            After `close`, for a bad box or level, and for `mpp` if the mpp of the slide is unknown.
        """
        box = Box(*(int(v) for v in box))
        if level is None:
            if mpp is not None and self._mpp is None:
                raise SlideError(f"slide {self.path} has no mpp; set slide.mpp, then read at {mpp} um per px.")
            frame = self.frame(mpp)
            return self.read_region(frame.region(box) if mpp is not None else box, frame)
        if mpp is not None:
            raise SlideError("read() takes mpp or level, not both.")
        if not 0 <= level < len(self.pyramid.levels):
            raise SlideError(f"slide {self.path} has no level {level}; it has 0 to {len(self.pyramid.levels) - 1}.")
        region = Frame(self.pyramid.scales[level]).region(box)
        _check_box(self, region)
        return self.pyramid.read(level, region)

    def read_region(self, region: Box | tuple[int, int, int, int], frame: Frame, *, mirrored: bool = False) -> Pixels:
        """Pixels of a region of a frame, resampled from the best level.

        Overlapping regions agree pixel for pixel. A frame pixel is the mean of the area it covers (linear interpolation
        if the frame is finer than level 0), and background if its centre lies outside the slide.

        Parameters
        ----------
        region
            (y, x, height, width) in pixels of the frame.
        frame
            Coordinate frame, from `Slide.frame`.
        mirrored
            Continue the slide as its mirror image beyond its edges. To a network, tissue that is cut off by the edge of
            the image would otherwise look like tissue that borders on background.

        Returns
        -------
        Array (height, width, C) of the slide's dtype.

        Raises
        ------
        SlideError
            After `close`, and for a region of negative size or of more than 4 GB.
        """
        region = Box(*region)
        _check_box(self, region)
        return (read_mirrored if mirrored else read_region)(self.pyramid, region, frame)

    def thumbnail(self, max_side: int = 1024) -> tuple[Pixels, Frame]:
        """The whole slide with at most `max_side` pixels on the longer side: array (h, w, C), and its frame."""
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
