"""PNG, JPEG and other plain images: decoded into memory at the first read, with a pyramid."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.identity import file_fingerprint
from napari_sparseseg.slides.level import RGB, WHITE, LazyPyramid, Pixels, over
from napari_sparseseg.slides.pyramid import SMALLEST
from napari_sparseseg.slides.resolution import Claim
from napari_sparseseg.slides.slide import SlideContents

if TYPE_CHECKING:
    from collections.abc import Callable

CONVERT = (
    "Convert it to a tiled pyramid, for instance: vips tiffsave in.png out.tif --tile --pyramid --compression jpeg"
)
DAMAGED = "The file is damaged; copy or export it again."
_FAST = {"PNG": imagecodecs.png_decode, "JPEG": imagecodecs.jpeg8_decode}
_GREY = {"L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "F": np.float32}
_ORIENTATION = 274
_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, LookupError, Image.DecompressionBombError)
"""Raised by Pillow and the codecs on damaged data."""


def open_image(path: str) -> SlideContents:
    """Open a plain image. It is decoded at the first read.

    Raises
    ------
    SlideOpenError
        If it is not an image, its header is invalid, or it has more pixels (178 million) than Pillow opens.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                kind, mode, (w, h), info = image.format or "image", image.mode, image.size, dict(image.info)
                # for other formats Pillow would decode the pixels to find EXIF
                orientation = image.getexif().get(_ORIENTATION, 1) if kind == "JPEG" else 1
    except UnidentifiedImageError as error:
        raise SlideOpenError(path, "Pillow does not recognise it as an image", "Is it a slide?") from error
    except Image.DecompressionBombError as error:
        raise SlideOpenError(path, f"it is too large to be decoded at once ({error})", CONVERT) from error
    except _ERRORS as error:
        raise SlideOpenError(path, f"its header is invalid ({error})", DAMAGED) from error
    grey = mode in _GREY
    dtype = np.dtype(_GREY.get(mode, np.uint8))
    shape = (h, w, 1 if grey else 3)
    # imagecodecs returns CMYK as stored, Pillow converts it
    fast = None if kind == "JPEG" and mode not in ("RGB", "L") else _FAST.get(kind)
    pyramid = LazyPyramid(shape, dtype, lambda: _decode(path, fast, shape, dtype), SMALLEST)
    contents = SlideContents(
        path=path,
        format=kind,
        backend="image",
        levels=pyramid.levels,
        channels=("grey",) if grey else RGB,
        is_rgb=not grey,
        background=(0.0,) if grey else WHITE,
        fingerprint=lambda: file_fingerprint(path),
        close=pyramid.drop,
        bytes=os.path.getsize(path),
    )
    if info.get("icc_profile"):
        contents.metadata["icc_profile_bytes"] = len(info["icc_profile"])
    if orientation != 1:
        contents.warnings.append(f"its orientation tag ({orientation}) is ignored, as by Bio-Formats")
    x, y = (float(v) for v in info.get("dpi", (0, 0)))
    if x > 0 and y > 0:
        contents.set_resolution([Claim(f"{kind} resolution", 25400 / y, 25400 / x, is_default=True)])
    return contents


def _decode(
    path: str, fast: Callable[[bytes], Pixels] | None, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> Pixels:
    try:
        pixels = None
        if fast:
            with open(path, "rb") as file:
                pixels = fast(file.read())
        if pixels is None or pixels.dtype != dtype or pixels.shape[:2] != shape[:2]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    has_alpha = "A" in image.mode or "a" in image.mode or "transparency" in image.info
                    plain = image if image.mode in _GREY else image.convert("RGBA" if has_alpha else "RGB")
                    pixels = np.asarray(plain)
    except _ERRORS as error:
        raise SlideOpenError(path, f"its pixels cannot be decoded ({error})", DAMAGED) from error
    pixels = pixels.reshape(*pixels.shape[:2], -1).astype(dtype, copy=False)
    if shape[2] == 3 and pixels.shape[2] in (2, 4):
        pixels = over(pixels if pixels.shape[2] == 4 else pixels[..., [0, 0, 0, 1]], WHITE)
    elif shape[2] == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape != shape:
        raise SlideOpenError(path, f"it decodes to {pixels.shape}, its header says {shape}", DAMAGED)
    return pixels
