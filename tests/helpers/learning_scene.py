"""Small real slides with real annotations for the tests of sampling and validation."""

from __future__ import annotations

import numpy as np
import tifffile

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.learning.sampling import Source
from napari_sparseseg.slides import open_slide

CLASSES = [("left", "#e69f00"), ("right", "#56b4e9"), ("rare", "#009e73")]


def write_slide(path, shape=(600, 800), dtype=np.uint8, channels=3):
    """Every pixel holds its own coordinates in its first two channels, modulo the range of a byte."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    planes = [y % 251, x % 251, (x >= shape[1] // 2) * 200, (y * x) % 241][:channels]
    pixels = np.stack(planes, -1).astype(dtype)
    photometric = "rgb" if channels == 3 and dtype == np.uint8 else "minisblack"
    if photometric == "minisblack":
        tifffile.imwrite(
            path, np.moveaxis(pixels, -1, 0), tile=(128, 128), photometric=photometric, metadata={"axes": "CYX"}
        )
    else:
        tifffile.imwrite(path, pixels, tile=(128, 128), photometric=photometric)
    return path


def scribbled(shape=(600, 800)) -> Annotations:
    """Four strokes of class 1, three of class 2, one of class 3."""
    a = Annotations(shape, classes=CLASSES)
    for y in (60, 180, 300, 480):
        a.paint([(y, 40), (y + 30, 200), (y, 330)], 6, 1)
    for y in (100, 250, 520):
        a.paint([(y, 450), (y + 20, 700)], 9, 2)
    a.paint([(400, 600), (400, 620)], 4, 3)
    return a


def make_source(path, annotations, mpp=None, role="train") -> Source:
    slide = open_slide(path)
    if mpp is not None:
        slide.mpp = 0.5
    return Source(slide, annotations.snapshot(), slide.frame(mpp), role)
