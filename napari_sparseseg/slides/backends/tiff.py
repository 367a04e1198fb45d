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
from napari_sparseseg.slides.backends.tiff_colours import (
    JPEG,
    YCC,
    colour_problem,
    conversion,
    describe_channels,
    is_ycc,
)
from napari_sparseseg.slides.backends.tiff_guard import CUT_OFF, DAMAGED, PositionedFile, Walker
from napari_sparseseg.slides.backends.tiff_level import (
    BYTE_CODECS,
    DECODE_ERRORS,
    IMAGE_CODECS,
    MAX_TILE_BYTES,
    TiffLevel,
)
from napari_sparseseg.slides.identity import file_fingerprint, image_fingerprint
from napari_sparseseg.slides.level import (
    LazyPyramid,
    Level,
    Pixels,
)
from napari_sparseseg.slides.pyramid import SMALLEST
from napari_sparseseg.slides.slide import ImageInfo, SlideContents

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
_IN_WORDS = {"Z": "focal planes", "T": "time points"}
_Z_OFFSET = 65424
"""NDPI tag: distance of a focal plane from the plane in focus."""
_ASSOCIATED = ("label", "macro", "thumbnail", "overview", "map", "label image", "macro image", "thumbnail image")
PARSE_ERRORS = (*DECODE_ERRORS, AssertionError, AttributeError, MemoryError, SyntaxError)


class UnsupportedTiffError(SlideOpenError):
    """A valid TIFF that this backend does not read; another may."""


def open_tiff(path: str, image: int | None = None) -> SlideContents:
    """Open an image of a TIFF file; by default the largest one that is tiled.

    Raises
    ------
    UnsupportedTiffError
        If the file is valid but of an unsupported kind.
    SlideOpenError
        If it is damaged, its tags contradict each other, or it has no such image.
    """
    size = os.path.getsize(path)
    file = PositionedFile(path)
    try:
        Walker(path, file, size).check()
        with _captured_log() as messages:
            contents = _parsed(path, lambda: _open_with_tifffile(path, file, size, image))
        told = [m[:200] for m in messages if "coercing invalid ASCII" not in m]
        contents.warnings += [f"tifffile: {m}" for m in told[:3]]
        return contents
    except BaseException:
        file.close()
        raise


def _open_with_tifffile(path: str, file: PositionedFile, size: int, image: int | None) -> SlideContents:
    with _tifffile(path) as tif:
        return _read_directory(path, file, size, tif, image)


@contextmanager
def _tifffile(path: str) -> Iterator[Any]:
    """The file as tifffile parses it, with a description that tifffile takes for binary decoded."""
    with tifffile.TiffFile(path, _multifile=False) as tif:
        first = tif.pages.first
        text = first.tags.valueof(270)
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else first.description
        first.description = text.strip("\0 \t\r\n")
        yield tif


def _mend(page: Any) -> None:
    """Set attributes of a page that tifffile decides wrongly, before it makes a decoder from them."""
    if page.compression not in JPEG:
        return
    if page.planarconfig == 2 and page.photometric == YCC:
        # Bio-Formats: one grey JPEG per colour, with the tag of interleaved JPEG
        page.photometric, page.subsampling = tifffile.PHOTOMETRIC.RGB, (1, 1)
    stored = next((o for o, n in zip(page.dataoffsets, page.databytecounts, strict=False) if o and n >= 11), 0)
    if stored and stored != page.dataoffsets[0]:
        # tifffile looks at the first tile only, which may be left out
        page.parent.filehandle.seek(stored + 6)
        page.is_jfif = page.parent.filehandle.read(4) == b"JFIF"


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


def _read_directory(path: str, file: PositionedFile, size: int, tif: Any, image: int | None) -> SlideContents:
    tiff_meta.refuse_foreign_files(path, tif)
    if tiff_meta.is_ventana(tif):
        raise UnsupportedTiffError(path, "its tiles overlap (Ventana), which needs OpenSlide", "Export it as OME-TIFF.")
    all_series: list[Any] = list(tif.series)
    if not all_series:
        raise UnsupportedTiffError(path, "it contains no image", "")
    images = _images(tif, all_series)
    number = _largest(images) if image is None else image
    if not 0 <= number < len(images):
        raise SlideOpenError(path, f"it has no image {image}; it has 0 to {len(images) - 1}", "Choose one of them.")
    series = images[number]
    page = series.keyframe
    _check_page(path, page)
    facts = tiff_meta.facts(tif, series, all_series.index(series))
    default = number == _largest(images)
    contents = SlideContents(
        path=path,
        format=facts.format,
        backend="tifffile",
        levels=(),
        channels=(),
        is_rgb=False,
        background=(),
        fingerprint=lambda: file_fingerprint(path) if default else image_fingerprint(file_fingerprint(path), number),
        close=file.close,
        metadata=facts.metadata,
        warnings=facts.warnings,
        bytes=size,
    )
    contents.set_resolution(facts.claims)
    names = [s.name if tif.is_ome or s.kind == "scn" else "" for s in images]
    listed = [ImageInfo(n, s.keyframe.imagewidth, s.keyframe.imagelength) for n, s in zip(names, images, strict=True)]
    contents.set_images(listed, number, chosen=image is not None)
    pages, leading = _planes_of(path, series, contents.warnings)
    describe_channels(contents, page, leading, facts, has_values=tif.is_ome or tif.is_imagej)
    if is_ycc(contents, page):
        contents.warnings.append(
            "its JPEG 2000 pixels are YCbCr and were converted to RGB, as OpenSlide does; Bio-Formats does not"
        )
    if page.is_tiled and page.tiledepth == 1 and page.imagedepth == 1:
        contents.levels = _tiled_levels(path, file, size, contents, series, all_series)
    else:
        contents.levels = _in_memory(path, contents, page, pages)
    contents.associated = tuple(
        s.name.lower() or f"image {i}" for i, s in enumerate(all_series) if all(s is not other for other in images)
    )
    return contents


def _images(tif: Any, all_series: Sequence[Any]) -> list[Any]:
    """The series that are slides: no label, macro or thumbnail, and no level of another."""
    names = tiff_meta.scn_images(tif)[0] if all_series[0].kind == "scn" else ()
    found = [s for s in all_series if s.name.lower() not in _ASSOCIATED and s.name not in names] or list(all_series)
    main = found[_largest(found)]
    if main.kind in ("ome", "scn"):
        return found
    levels = _loose_levels(main, all_series)
    return [
        s
        for s in found
        if s is main
        or not (
            s.keyframe.is_reduced or any(s is level for level in levels) or s.keyframe.is_tiled < main.keyframe.is_tiled
        )
    ]


def _largest(images: Sequence[Any]) -> int:
    """Number of the largest image, tiled ones first: the photo of the whole slide may be larger than a scan."""
    areas = [(s.keyframe.is_tiled, s.keyframe.imagelength * s.keyframe.imagewidth) for s in images]
    return areas.index(max(areas))


def _check_page(path: str, page: Any) -> None:
    h, w = page.imagelength, page.imagewidth
    if not 0 < h <= MAX_SIDE or not 0 < w <= MAX_SIDE:
        raise SlideOpenError(path, f"it claims {w} x {h} px, and {MAX_SIDE} a side is the limit", DAMAGED)
    if page.dtype is None or page.dtype.kind not in "uifb" or page.dtype.itemsize > 8:
        raise UnsupportedTiffError(path, f"its pixels are of type {page.dtype}", "Convert it to 8 or 16 bits.")
    problem = colour_problem(page)
    if problem:
        raise UnsupportedTiffError(path, problem, "Convert it to RGB.")
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
    """The pages to show (first time point, focal plane 0 or the one in focus), and how many channels they form."""
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
        k = _in_focus(series, n) if axis == "Z" else 0
        chosen.append(range(k, k + 1))
        if n > 1:
            notes.append(f"it has {n} {_IN_WORDS.get(axis, 'images of the same size')}; number {k} is open")
    shape = [n for _, n in sizes]
    indices = np.ravel_multi_index(np.meshgrid(*chosen, indexing="ij"), shape).ravel() if sizes else [0]
    pages = [series.pages[int(i)] for i in indices]
    if any(p is None for p in pages):
        raise SlideOpenError(path, "some of its planes lie in other files", "Export it as one file.")
    return pages, len(pages)


def _in_focus(series: Any, planes: int) -> int:
    """The focal plane with offset 0, if the file says so; else the first."""
    if len(series.pages) == planes:
        offsets = [p.aspage().tags.valueof(_Z_OFFSET) if p is not None else None for p in series.pages]
        if 0 in offsets:
            return offsets.index(0)
    return 0


def _tiled_levels(
    path: str, file: PositionedFile, size: int, contents: SlideContents, series: Any, all_series: Sequence[Any]
) -> list[TiffLevel]:
    found = [series, *series.levels[1:], *_loose_levels(series, all_series)]
    found.sort(key=lambda part: -part.keyframe.imagelength)  # stable: equal sizes stay in file order
    levels: list[TiffLevel] = []
    first, missing, left_out = series.keyframe, 0, 0
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
        empty = int(level.left_out().sum())
        if empty == total:
            contents.warnings.append(f"level {k} is empty: none of its tiles is stored")
        if levels and series.kind == "svs":
            level.fill_from(levels[-1])
        missing, left_out = missing + bad, left_out + empty
        levels.append(level)
    if missing:
        contents.warnings.append(f"{missing} tiles lie beyond the end of the file; they are shown grey. {CUT_OFF}")
    if left_out:
        contents.metadata["tiles_left_out"] = left_out
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
    _mend(page)
    converted, channels = conversion(contents, page), len(contents.channels)
    samples = 1 if page.planarconfig == 2 else channels // len(pages)
    return TiffLevel(
        file,
        pages,
        (page.imagelength, page.imagewidth, channels),
        converted.dtype,
        samples,
        converted.convert,
        contents.background,
        is_ycc=is_ycc(contents, page),
    )


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
    converted = conversion(contents, page)

    def load() -> Pixels:
        try:
            with _captured_log(), _tifffile(path) as tif:
                planes = [_whole(tif.pages[k], contents.background) for k in numbers]
        except PARSE_ERRORS as error:
            reason = f"its pixels cannot be decoded ({type(error).__name__}: {error})"
            raise SlideOpenError(path, reason, DAMAGED) from error
        parts = [np.moveaxis(p, 0, -1) if page.planarconfig == 2 and p.ndim == 3 else p for p in planes]
        pixels = np.concatenate([p.reshape(h, w, -1) for p in parts], axis=2)
        pixels = converted.convert(pixels) if converted.convert else pixels
        return np.ascontiguousarray(pixels[..., :channels], converted.dtype)

    return LazyPyramid((h, w, channels), converted.dtype, load, SMALLEST).levels


def _whole(page: Any, background: tuple[float, ...]) -> Pixels:
    """All pixels of a page; strips that are left out are background."""
    keyframe = page.keyframe
    _mend(keyframe)
    if keyframe.dtype == np.uint8:
        keyframe.nodata = int(background[0])
    return np.asarray(page.asarray(maxworkers=1))
