"""Guidance: unlabelled tissue, doubt first, spread out."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg import Annotations, open_slide
from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.prediction.guidance import CELL, LOOKED_AT, candidates, suggest
from napari_sparseseg.prediction.tissue import TissueMask


class HalfSure:
    """A segmenter that is certain but for one cell, where it wavers between its second and third class."""

    halo, size_divisor = 0, 1
    metadata = ModelMetadata(make_classes(["a", "b", "c"]), 1.0, "none")

    def __init__(self, doubtful: Box) -> None:
        self.doubtful = doubtful

    def probabilities(self, pixels, *, origin=(0, 0)):
        out = np.zeros((3, *pixels.shape[:2]), np.float32)
        out[0] = 1
        here = Box(*origin, *pixels.shape[:2]).intersection(self.doubtful)
        if here.area:
            at = (slice(here.y - origin[0], here.y1 - origin[0]), slice(here.x - origin[1], here.x1 - origin[1]))
            out[(0, *at)], out[(1, *at)], out[(2, *at)] = 0.1, 0.5, 0.4
        return out


def everywhere(shape):
    return TissueMask(np.ones((8, 8), bool), Frame((shape[0] / 8, shape[1] / 8)))


def test_candidates_avoid_labels_visited_places_and_glass():
    shape = (CELL * 6, CELL * 6)
    a = Annotations(shape, ["a", "b"])
    a.paint([(10, 10), (10, CELL * 6 - 10)], 4, 1)
    tissue = TissueMask(np.repeat([[True, False]], 2, axis=0), Frame((shape[0] / 2, shape[1] / 2)))
    visited = [Box(CELL, 0, CELL, CELL)]
    found = candidates(shape, Frame(), a.snapshot(), tissue, visited, np.random.default_rng(0))
    assert found
    assert len(set(found)) == len(found) <= LOOKED_AT
    for cell in found:
        assert cell.y >= CELL
        assert cell.x < CELL * 3
        assert cell != visited[0]


def test_no_candidates_on_a_slide_without_free_tissue():
    a = Annotations((CELL, CELL), ["a", "b"])
    a.paint([(10, 10)], 4, 1)
    assert candidates((CELL, CELL), Frame(), a.snapshot(), everywhere((CELL, CELL)), [], np.random.default_rng(0)) == []


@pytest.mark.parametrize("doubtful", [Box(0, CELL, CELL, CELL), Box(CELL * 2, CELL * 2, CELL, CELL)])
def test_suggests_the_doubtful_cell_and_names_its_classes(tiny_slide, doubtful):
    cells = [Box(i * CELL, j * CELL, CELL, CELL) for i in range(4) for j in range(4)]
    with open_slide(tiny_slide) as slide:
        found = suggest(HalfSure(doubtful), slide, Frame(), cells)
    assert found.box == doubtful
    assert found.classes == (2, 3)
    assert found.centre == (doubtful.y + CELL / 2, doubtful.x + CELL / 2)
    assert 0.5 < found.uncertainty < 1


def test_nothing_to_suggest_without_cells(tiny_slide):
    with open_slide(tiny_slide) as slide:
        assert suggest(HalfSure(Box(0, 0, 1, 1)), slide, Frame(), []) is None


class Doubting:
    """A segmenter with one set of probabilities per column of cells."""

    halo, size_divisor = 0, 1
    metadata = ModelMetadata(make_classes(["a", "b", "c"]), 1.0, "none")

    def __init__(self, *columns: tuple[float, float, float]) -> None:
        self.columns = np.array(columns, np.float32)

    def probabilities(self, pixels, *, origin=(0, 0)):
        column = (origin[1] + np.arange(pixels.shape[1])) // CELL
        return np.repeat(self.columns[column].T[:, None], pixels.shape[0], axis=1)


def picked(slide, model, near=()):
    cells = [Box(0, k * CELL, CELL, CELL) for k in range(len(model.columns))]
    return suggest(model, slide, Frame(), cells, [cells[k] for k in near]).box.x // CELL


def test_near_an_earlier_suggestion_half_counts(tiny_slide):
    model = Doubting((0.9, 0.1, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.85, 0.15, 0.0))
    with open_slide(tiny_slide) as slide:
        assert picked(slide, model) == 3
        assert picked(slide, model, near=[3]) == 0
