"""The colours that classes get: told apart by everybody, on haematoxylin and eosin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from napari_sparseseg.config import GREY, PALETTE, ClassDef, make_classes
from napari_sparseseg.gui.sections.classes.view import PRESETS, next_colour

# Machado, Oliveira & Fernandes (2009), table 1, severity 1.0; they work on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TISSUE = "#ab638d"
"""Median of the coloured pixels of CMU-1 (Aperio, haematoxylin and eosin)."""
CLEARLY = 15.0
"""CIE 1976 colour difference; 2.3 is just noticeable side by side."""


def seen(colour: str, sight: str) -> np.ndarray:
    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(rgb[None, None])[0, 0]


def difference(a: str, b: str, sight: str) -> float:
    return float(np.linalg.norm(seen(a, sight) - seen(b, sight)))


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_six_differ_from_each_other_and_from_tissue(sight):
    for a, b in itertools.combinations((*PALETTE[:6], TISSUE), 2):
        assert difference(a, b, sight) > CLEARLY, (a, b)


def test_the_purple_of_the_palette_would_not():
    assert difference("#cc79a7", TISSUE, "deuteranopia") < CLEARLY


def test_presets_have_distinct_colours_and_grey_glass():
    for table in PRESETS.values():
        assert len({c.colour for c in table}) == len(table)
        assert all(c.colour == GREY for c in table if c.name == "background")
        assert not any(c.colour == GREY for c in table if c.name != "background")


def test_the_next_colour_is_new():
    classes = make_classes(["a", "b"])
    for i in range(3, 31):
        colour = next_colour(classes)
        assert colour not in {c.colour for c in classes}
        classes = (*classes, ClassDef(i, f"class {i}", colour))
