"""TIFF slides (Aperio, generic and OME pyramids, QPTIFF, NDPI, SCN, Philips), parsed by tifffile.

Tiles are decoded here instead of through tifffile's zarr store (see D41). Every claim of a file is checked before use.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.backends import tiff_metadata as tiff_meta
from napari_sparseseg.slides.backends.tiff_guard import CUT_OFF, DAMAGED, PositionedFile, Walker
from napari_sparseseg.slides.backends.tiff_level import (
    BYTE_CODECS,
    DECODE_ERRORS,
    IMAGE_CODECS,
    JPEG,
    MAX_TILE_BYTES,
    TiffLevel,
)
from napari_sparseseg.slides.identity import file_fingerprint
from napari_sparseseg.slides.level import RGB, RGB_COLOURS, WHITE, LazyPyramid, Level, Pixels, over
from napari_sparseseg.slides.pyramid import SMALLEST
from napari_sparseseg.slides.slide import SlideContents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_SIDE = 2**20
MAX_TILE_SIDE = 4096
MAX_IN_MEMORY = 200_000_000
"""Pixels of an image without tiles, which is decoded as a whole."""
MAX_UNPROVED = 64 * 2**20
MAX_RATIO = 2000
"""Largest plausible compression of an image without tiles of more than `MAX_UNPROVED` bytes; deflate reaches 1032."""
CONVERT = (
    "Convert it to a tiled pyramid, for instance: vips tiffsave in.tif out.tif --tile --pyramid --compression jpeg"
)
_ALIKE = ("dtype", "samplesperpixel", "planarconfig")
_RGB_PHOTOMETRIC = (2, 6)
PARSE_ERRORS = (*DECODE_ERRORS, AssertionError, AttributeError, MemoryError, SyntaxError)


class UnsupportedTiffError(SlideOpenError):
    """A valid TIFF that this backend does not read; another may."""


def open_tiff(path: str) -> SlideContents:
    """Open a TIFF file.

    Raises
    ------
    UnsupportedTiffError
        If the file is valid but of an unsupported kind.
    SlideOpenError
        If it is damaged, or its tags contradict each other.
    """
    size = os.path.getsize(path)
    file = PositionedFile(path)
    try:
        Walker(path, file, size).check()
        with _captured_log() as messages:
            contents = _parsed(path, lambda: _open_with_tifffile(path, file, size))
        contents.warnings += [f"tifffile: {m}" for m in messages[:3]]
        return contents
    except BaseException:
        file.close()
        raise


def _open_with_tifffile(path: str, file: PositionedFile, size: int) -> SlideContents:
    with tifffile.TiffFile(path, _multifile=False) as tif:
        return _read_directory(path, file, size, tif)


def _parsed(path: str, parse: Callable[[], SlideContents]) -> SlideContents:
    """The result of `parse`. tifffile parses tags on access, so each of `PARSE_ERRORS` means a damaged file."""
    try:
        return parse()
    except PARSE_ERRORS as error:
        reason = f"its image directories are invalid ({type(error).__name__}: {error})"
        raise SlideOpenError(path, reason, DAMAGED) from error


@contextmanager
def _captured_log() -> Iterator[list[str]]:
    """Collect what tifffile logs in this thread, instead of printing it on the user's terminal."""
    messages: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        messages.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)


def _read_directory(path: str, file: PositionedFile, size: int, tif: Any) -> SlideContents:
    tiff_meta.refuse_foreign_files(path, tif)
    all_series: list[Any] = list(tif.series)
    if not all_series:
        raise UnsupportedTiffError(path, "it contains no image", "")
    series = max(all_series, key=lambda s: s.keyframe.imagelength * s.keyframe.imagewidth)
    page = series.keyframe
    _check_page(path, page)
    facts = tiff_meta.facts(tif, series)
    contents = SlideContents(
        path=path,
        format=facts.format,
        backend="tifffile",
        levels=(),
        channels=(),
        is_rgb=False,
        background=(),
        fingerprint=lambda: file_fingerprint(path),
        close=file.close,
        mpp=facts.mpp,
        mpp_source=facts.mpp_source,
        metadata=facts.metadata,
        warnings=facts.warnings,
        bytes=size,
    )
    pages, leading = _planes_of(path, series, contents.warnings)
    _describe_channels(contents, page, leading, facts)
    if page.is_tiled and page.tiledepth == 1 and page.imagedepth == 1:
        contents.levels = _tiled_levels(path, file, size, contents, series, all_series)
    else:
        contents.levels = _in_memory(path, contents, page, pages)
    contents.associated = tuple(s.name.lower() or f"image {i}" for i, s in enumerate(all_series) if s is not series)
    return contents


def _check_page(path: str, page: Any) -> None:
    h, w = page.imagelength, page.imagewidth
    if not 0 < h <= MAX_SIDE or not 0 < w <= MAX_SIDE:
        raise SlideOpenError(path, f"it claims {w} x {h} px, and {MAX_SIDE} a side is the limit", DAMAGED)
    if page.dtype is None or page.dtype.kind not in "uif" or page.dtype.itemsize > 8:
        raise UnsupportedTiffError(path, f"its pixels are of type {page.dtype}", "Convert it to 8 or 16 bits.")
    if page.photometric == 3:
        raise UnsupportedTiffError(path, "its colours are a palette", "Convert it to RGB.")
    if page.photometric == 6 and page.compression not in (*JPEG, 33003, 33005, 34712):
        raise UnsupportedTiffError(path, "its YCbCr pixels are not JPEG", "Convert it to RGB.")
    if page.compression not in (*JPEG, *IMAGE_CODECS, *BYTE_CODECS):
        name = getattr(page.compression, "name", page.compression)
        raise UnsupportedTiffError(path, f"its pixels are compressed by {name}", "Convert it to JPEG or deflate.")
    if not page.is_tiled:
        return
    th, tw = page.tilelength, page.tilewidth
    if not 0 < th <= MAX_TILE_SIDE or not 0 < tw <= MAX_TILE_SIDE:
        raise SlideOpenError(path, f"its tiles are {tw} x {th} px, and {MAX_TILE_SIDE} a side is the limit", CONVERT)
    if th * tw * page.samplesperpixel * page.dtype.itemsize > MAX_TILE_BYTES:
        raise SlideOpenError(path, f"a tile of it takes more than {MAX_TILE_BYTES >> 20} MB", CONVERT)


def _planes_of(path: str, series: Any, notes: list[str]) -> tuple[list[Any], int]:
    """The pages to show (first time point, middle focal plane), and how many channels they form."""
    sizes = [
        (axis, n) for axis, n in zip(series.get_axes(False), series.get_shape(False), strict=True) if axis not in "YXS"
    ]
    if math.prod(n for _, n in sizes) != len(series.pages):
        if len(series.pages) == 1 and not series.keyframe.is_tiled:
            raise UnsupportedTiffError(path, f"its {series.axes} planes are not stored as separate pages", CONVERT)
        sizes = [("C", len(series.pages))]
    if "C" in series.get_axes(False):
        spread = {"C"}
    else:
        spread = {axis for axis, n in sizes if axis in "IQ" and n > 1 and series.keyframe.samplesperpixel == 1}
    chosen = []
    for axis, n in sizes:
        if axis in spread:
            chosen.append(range(n))
            continue
        k = n // 2 if axis == "Z" else 0
        chosen.append(range(k, k + 1))
        if n > 1:
            notes.append(f"of {n} planes along {axis}, number {k + 1} is shown")
    shape = [n for _, n in sizes]
    indices = np.ravel_multi_index(np.meshgrid(*chosen, indexing="ij"), shape).ravel() if sizes else [0]
    pages = [series.pages[int(i)] for i in indices]
    if any(p is None for p in pages):
        raise SlideOpenError(path, "some of its planes lie in other files", "Export it as one file.")
    return pages, len(pages)


def _describe_channels(contents: SlideContents, page: Any, leading: int, facts: tiff_meta.Facts) -> None:
    samples = page.samplesperpixel
    contents.is_rgb = (
        leading == 1 and samples in (3, 4) and page.photometric in _RGB_PHOTOMETRIC and page.dtype == np.uint8
    )
    if contents.is_rgb:
        contents.channels, contents.background = RGB, WHITE
        return
    count = leading * samples
    names, colours = facts.channels, facts.colours
    if len(names) != count:
        names, colours = tuple(f"channel {k + 1}" for k in range(count)), ()
        if count == 3 and page.photometric in _RGB_PHOTOMETRIC:
            names, colours = RGB, RGB_COLOURS
    contents.channels, contents.colours, contents.background = names, colours, (0.0,) * count


def _tiled_levels(
    path: str, file: PositionedFile, size: int, contents: SlideContents, series: Any, all_series: Sequence[Any]
) -> list[Level]:
    found = [series, *series.levels[1:], *_loose_levels(series, all_series)]
    found.sort(key=lambda part: -part.keyframe.imagelength)  # stable: equal sizes stay in file order
    levels: list[Level] = []
    first, missing = series.keyframe, 0
    for k, part in enumerate(found):
        page = part.keyframe
        alike = all(getattr(page, name) == getattr(first, name) for name in _ALIKE)
        if not page.is_tiled or not alike:
            contents.warnings.append(f"level {k} has other pixels than level 0 and is left out")
            continue
        _check_page(path, page)
        if levels and page.imagelength * page.imagewidth >= levels[-1].shape[0] * levels[-1].shape[1]:
            contents.warnings.append(f"level {k} does not shrink and is left out")
            continue
        pages, _ = _planes_of(path, part, [])
        level = _tiff_level(file, contents, pages)
        problem = level.table_problem()
        if problem:
            raise SlideOpenError(path, problem, DAMAGED)
        bad, total = level.beyond(size)
        if bad == total:
            raise SlideOpenError(path, f"all tiles of level {k} lie beyond the end of the file", CUT_OFF)
        missing += bad
        levels.append(level)
    if missing:
        contents.warnings.append(f"{missing} tiles lie beyond the end of the file; they are shown grey. {CUT_OFF}")
    return levels


def _loose_levels(series: Any, all_series: Sequence[Any]) -> list[Any]:
    """Smaller tiled images of the same shape that the file does not mark as levels.

    Each series of an OME-TIFF is a separate image, and other files mark either all levels or none. In an SVS tifffile
    takes the second image for the thumbnail even if it is a level.
    """
    if series.kind == "ome" or (len(series.levels) > 1 and series.kind != "svs"):
        return []
    page = series.keyframe
    out = []
    for other in sorted(all_series, key=lambda s: -s.keyframe.imagelength):
        small = other.keyframe
        ratio = page.imagelength / small.imagelength
        same_shape = abs(page.imagewidth / ratio - small.imagewidth) <= 1 + small.imagewidth * 0.002
        if (
            other is not series
            and small.is_tiled
            and ratio > 1.5
            and same_shape
            and len(other.pages) == len(series.pages)
        ):
            out.append(other)
    return out


def _tiff_level(file: PositionedFile, contents: SlideContents, pages: Sequence[Any]) -> TiffLevel:
    page = pages[0].keyframe
    planar = page.planarconfig == 2
    channels = len(contents.channels)
    samples = 1 if planar else min(page.samplesperpixel, channels)
    sparse = contents.background if contents.metadata.get("sparse") else None
    shape = (page.imagelength, page.imagewidth, channels)
    return TiffLevel(file, pages, shape, samples, _finisher(contents, page), sparse)


def _finisher(contents: SlideContents, page: Any) -> Callable[[Pixels], Pixels] | None:
    if contents.is_rgb and page.samplesperpixel == 4 and page.planarconfig != 2:
        return lambda pixels: over(pixels, WHITE)
    if page.photometric == 0 and page.dtype.kind == "u":
        top = np.iinfo(page.dtype).max
        return lambda pixels: top - pixels
    return None


def _in_memory(path: str, contents: SlideContents, page: Any, pages: Sequence[Any]) -> Sequence[Level]:
    h, w = page.imagelength, page.imagewidth
    channels = len(contents.channels)
    if h * w * channels > 3 * MAX_IN_MEMORY:
        raise SlideOpenError(path, f"its {w} x {h} px are not in tiles and would have to be decoded at once", CONVERT)
    needed = math.ceil(h / page.rowsperstrip) * (page.samplesperpixel if page.planarconfig == 2 else 1)
    if len(page.dataoffsets) != needed and not page.is_tiled and len(page.dataoffsets) != 1:
        raise SlideOpenError(path, f"{h} rows need {needed} strips, and it lists {len(page.dataoffsets)}", DAMAGED)
    stored = sum(int(n) for n in page.databytecounts) * len(pages)
    claimed = h * w * channels * page.dtype.itemsize
    if claimed > MAX_UNPROVED and claimed > MAX_RATIO * stored:
        raise SlideOpenError(path, f"its {w} x {h} px cannot be stored in {stored} bytes", DAMAGED)
    numbers = [p.index for p in pages]
    finish, dtype = _finisher(contents, page), page.dtype.newbyteorder("=")

    def load() -> Pixels:
        try:
            with _captured_log(), tifffile.TiffFile(path, _multifile=False) as tif:
                planes = [np.asarray(tif.pages[k].asarray(maxworkers=1)) for k in numbers]
        except PARSE_ERRORS as error:
            reason = f"its pixels cannot be decoded ({type(error).__name__}: {error})"
            raise SlideOpenError(path, reason, DAMAGED) from error
        parts = [np.moveaxis(p, 0, -1) if page.planarconfig == 2 and p.ndim == 3 else p for p in planes]
        pixels = np.concatenate([p.reshape(h, w, -1) for p in parts], axis=2)
        return np.ascontiguousarray((finish(pixels) if finish else pixels)[..., :channels], dtype)

    return LazyPyramid((h, w, channels), dtype, load, SMALLEST).levels
