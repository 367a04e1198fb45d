"""`open_slide`: chooses the backend for a file by its first bytes."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideError, SlideOpenError
from napari_sparseseg.slides.identity import file_stamp
from napari_sparseseg.slides.slide import Slide, SlideContents

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from napari_sparseseg.slides.identity import Stamp

ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
OPENSLIDE_SUFFIXES = (".mrxs", ".vms", ".vmu", ".bif", ".dcm", ".svslide", ".czi")
"""Formats that only OpenSlide reads, or that look like another format (an .mrxs file is a JPEG)."""

_ELSEWHERE = {
    (".vsi", ".ets"): "an Olympus VSI stores its pixels in the folder beside it, in a format that is not supported",
    (".companion.ome", ".afi", ".ndpis"): "it only lists other files that store the pixels",
    (".isyntax", ".i2syntax", ".kfb", ".sdpc", ".tmap", ".mdsx", ".lif", ".oir"): "its format is not supported",
}
"""Files that are refused by name: they lack the pixels, or look like another format."""

MAX_CHANNELS = 1024
"""Multiplex slides have about a hundred; a damaged TIFF can claim 65,000, and a small tile of those takes 300 MB."""


def open_slide(path: str | PathLike[str], *, image: int | None = None, crop: bool = True) -> Slide:
    """Open a slide lazily: no pixels are read.

    Parameters
    ----------
    path
        A slide file, an OME-Zarr folder, or the address of one (``https://``, ``s3://``, ``gs://``).
    image
        Number of the image in a file that contains several (see `Slide.images`). Default: the largest.
    crop
        Whether to crop the slide to the scanned area if the file specifies one (mostly MRXS), as QuPath does.

    Raises
    ------
    SlideOpenError
        If it cannot be opened; the message gives the reason and what to do.

    Examples
    --------
    >>> from napari_sparseseg import open_slide
    >>> from napari_sparseseg.samples import sample_slide
    >>> slide = open_slide(sample_slide())
    >>> slide.channels, slide.mpp_source
    (('R', 'G', 'B'), 'OME PhysicalSize')
    >>> slide.close()
    """
    name = os.fspath(path)
    if "://" in name:
        return _make(_zarr(name, image))
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        metadata = [file for f in ZARR_FILES if os.path.exists(file := os.path.join(name, f))]
        if metadata:
            stamp = file_stamp(metadata)
            return _make(_zarr(name, image), metadata, stamp)
        raise SlideOpenError(name, "it is a folder without OME-Zarr in it", "Give the slide file inside.")
    if os.path.basename(name) in ZARR_FILES:
        return open_slide(os.path.dirname(name) or ".", image=image)
    head, stamp = _head(name)
    if not head:
        raise SlideOpenError(name, "it is empty", "Copy or export the file again.")
    for suffixes, reason in _ELSEWHERE.items():
        if name.lower().endswith(suffixes):
            raise SlideOpenError(name, reason, "Export it as OME-TIFF or OME-Zarr (QuPath, Bio-Formats).")
    return _make(_dispatch(name, head, image, crop=crop), [name], stamp)


def _head(name: str) -> tuple[bytes, Stamp]:
    """The first bytes of a file, and its stamp taken before they were read."""
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # opening a pipe would block
            raise SlideOpenError(name, "it is not a regular file", "Give the slide file.")
        stamp = file_stamp([name])
        with open(name, "rb") as file:
            return file.read(16), stamp
    except ValueError as error:
        raise SlideOpenError(name, "no file can have that name", "Check the path.") from error
    except FileNotFoundError as error:
        raise SlideOpenError(name, "there is no such file", "Check the path; has it been moved?") from error
    except PermissionError as error:
        raise SlideOpenError(name, "reading it is not permitted", "Ask its owner for read permission.") from error
    except OSError as error:
        raise SlideOpenError(
            name, f"it cannot be read ({error.strerror or error})", "Is its disk or network share there?"
        ) from error


def _make(contents: SlideContents, watched: Sequence[str] = (), stamp: Stamp = ()) -> Slide:
    contents.watched, contents.stamp = watched, stamp
    try:
        count = contents.levels[0].shape[2] if contents.levels else 1
        if count > MAX_CHANNELS:
            raise SlideError(f"it claims {count:,} channels, and {MAX_CHANNELS} is the limit")
        return Slide(contents)
    except SlideError as error:
        contents.close()
        raise SlideOpenError(contents.path, str(error).rstrip("."), "The file is damaged; export it again.") from error


def _dispatch(name: str, head: bytes, image: int | None, *, crop: bool) -> SlideContents:
    if name.lower().endswith(OPENSLIDE_SUFFIXES):
        return _openslide(name, image, crop=crop)
    if head.startswith(_TIFF):
        from napari_sparseseg.slides.backends.tiff import UnsupportedTiffError, open_tiff

        try:
            return open_tiff(name, image)
        except UnsupportedTiffError as error:
            return _openslide(name, image, error, crop=crop)
    if head.startswith(_IMAGES):
        from napari_sparseseg.slides.backends.image import open_image

        _only_one(name, image)
        return open_image(name)
    return _openslide(name, image, crop=crop)


def _zarr(name: str, image: int | None) -> SlideContents:
    from napari_sparseseg.slides.backends.omezarr import open_omezarr

    return open_omezarr(name, image)


def _openslide(name: str, image: int | None, first: SlideOpenError | None = None, *, crop: bool) -> SlideContents:
    from napari_sparseseg.slides.backends.openslide import open_openslide

    _only_one(name, image)
    return open_openslide(name, first, crop=crop)


def _only_one(name: str, image: int | None) -> None:
    if image:
        raise SlideOpenError(name, f"it has no image {image}, only image 0", "Leave the number out.")
