"""What the pixels of a TIFF page mean: its channels, and the conversion of stored pixels to those of a level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.slides.level import RGB, RGB_COLOURS, WHITE, Pixels, are_colour_names, hex_colour, over

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.slides.backends.tiff_metadata import Facts
    from napari_sparseseg.slides.slide import SlideContents

JPEG = (6, 7, 34892, 33007)
"""JPEG compressions, whose tiles may share tables."""
_J2K = (33003, 33004, 33005, 34712)
_APERIO_YCC = 33003
_INVERTED, _RGB, _PALETTE, _CMYK, YCC = 0, 2, 3, 5, 6
_OTHER_COLOURS = {
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
}


class Conversion(NamedTuple):
    """How the stored pixels of a page become those of a level."""

    dtype: np.dtype[Any]
    convert: Callable[[Pixels], Pixels] | None


def colour_problem(page: Any) -> str:
    """Why the colours of a page cannot be read here; empty if they can."""
    photometric = page.photometric
    if photometric in _OTHER_COLOURS:
        return f"its colours are {_OTHER_COLOURS[photometric]}"
    if photometric == YCC and page.compression not in (*JPEG, *_J2K):
        return "its YCbCr pixels are not JPEG"
    if photometric == _PALETTE and (
        page.dtype.kind != "u" or page.samplesperpixel != 1 or np.shape(page.colormap) != (3, 2**page.bitspersample)
    ):
        return "its palette is missing or of the wrong size"
    if photometric == _CMYK and (page.planarconfig == 2 or page.dtype != np.uint8 or page.samplesperpixel < 4):
        return "its CMYK pixels are not interleaved bytes"
    return ""


def describe_channels(contents: SlideContents, page: Any, leading: int, facts: Facts, *, has_values: bool) -> None:
    """Set the channels, their colours and the background of a slide.

    Parameters
    ----------
    contents
        Is changed.
    page, leading
        A page of level 0, and how many of its kind form the slide.
    facts
        The metadata.
    has_values
        Whether the pixels of a palette image are measured values and its palette only displays them (OME, ImageJ).
    """
    samples, photometric = page.samplesperpixel, page.photometric
    is_colour = (
        (photometric in (_RGB, YCC) and samples in (3, 4) and page.dtype == np.uint8 and not _named_fluorescence(facts))
        or photometric == _CMYK
        or (photometric == _PALETTE and not has_values)
    )
    if is_colour and leading == 1:
        contents.is_rgb, contents.channels, contents.background = True, RGB, WHITE
        return
    count = leading * samples
    names, colours = facts.channels, facts.colours
    if len(names) != count:
        names, colours = tuple(f"channel {k + 1}" for k in range(count)), ()
        if count == 3 and photometric in (_RGB, YCC):
            names, colours = RGB, RGB_COLOURS
    if photometric == _PALETTE and not any(colours):
        colours = (_top_colour(page.colormap),) * count if count == 1 else ()
    contents.channels, contents.colours, contents.background = names, colours, (0.0,) * count


def _named_fluorescence(facts: Facts) -> bool:
    """Whether a file lists the channels of its RGB pixels one by one, with names that are not those of colours."""
    return facts.listed == 3 and not are_colour_names(facts.channels)


def _top_colour(colormap: Any) -> str | None:
    """The colour of the highest value, if the lookup table is a ramp from black to it."""
    table = np.asarray(colormap, np.float64)
    ramp = table[:, -1:] * np.linspace(0, 1, table.shape[1])
    if not table[:, -1].any() or np.abs(table - ramp).max() > 600:
        return None
    red, green, blue = (int(v) >> 8 for v in table[:, -1])
    return hex_colour(red, green, blue)


def is_ycc(contents: SlideContents, page: Any) -> bool:
    """Whether JPEG 2000 tiles hold YCbCr without a colour transform: Aperio's 33003 (see D44), or what the tag says."""
    is_aperio = contents.format == "Aperio SVS" and page.compression == _APERIO_YCC
    return contents.is_rgb and (is_aperio or (page.photometric == YCC and page.compression in _J2K))


def conversion(contents: SlideContents, page: Any) -> Conversion:
    """The conversion of decoded pixels (h, w, samples) of a page: palette, CMYK, alpha, bilevel, min-is-white."""
    dtype = page.dtype.newbyteorder("=")
    if contents.is_rgb and page.photometric == _PALETTE:
        table = (np.asarray(page.colormap, np.uint16).T >> 8).astype(np.uint8)
        return Conversion(np.dtype(np.uint8), lambda pixels: table[pixels[..., 0]])
    if contents.is_rgb and page.photometric == _CMYK:
        return Conversion(dtype, cmyk_to_rgb)
    if contents.is_rgb and page.samplesperpixel == 4 and page.planarconfig != 2:
        is_premultiplied = tuple(page.extrasamples)[:1] == (1,)
        return Conversion(dtype, lambda pixels: over(pixels, WHITE, premultiplied=is_premultiplied))
    if page.dtype.kind == "b":
        white = page.photometric != _INVERTED
        return Conversion(np.dtype(np.uint8), lambda pixels: np.where(pixels == white, np.uint8(255), np.uint8(0)))
    if page.photometric == _INVERTED and page.dtype.kind == "u":
        top = dtype.type(2 ** int(page.bitspersample) - 1)
        return Conversion(dtype, lambda pixels: top - pixels)
    return Conversion(dtype, None)


def ycc_to_rgb(pixels: Pixels) -> Pixels:
    """YCbCr of full range (JFIF, ITU-T T.871) to RGB; uint8 (h, w, 3)."""
    wide = pixels[..., :3].astype(np.float32) - np.array([0, 128, 128], np.float32)
    rgb = wide @ np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]], np.float32)
    out: Pixels = np.clip(rgb + 0.5, 0, 255).astype(np.uint8)
    return out


def cmyk_to_rgb(pixels: Pixels) -> Pixels:
    """Uncalibrated CMYK (uint8, (h, w, 4 or more), 255 is full ink) to RGB, as libtiff and Pillow do."""
    light = 255 - pixels[..., :4].astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def chroma_is_subsampled(data: bytes) -> bool:
    """Whether the second component of a JPEG 2000 codestream has half the width: OpenJPEG then converts it to RGB."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    return at >= 0 and len(data) > at + 46 and data[at + 46] > 1
