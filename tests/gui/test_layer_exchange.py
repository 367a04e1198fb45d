"""Annotations from and to plain napari layers; layers need no viewer."""

import numpy as np
import pytest
from napari.layers import Image, Labels, Shapes

from napari_sparseseg import Annotations
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.gui.layers.layer_exchange import import_layer, shapes_data

SHAPE = (1200, 1000)
WHOLE = (0, 0, *SHAPE)


@pytest.fixture
def empty():
    return Annotations(SHAPE, ["tumour", "stroma"])


def test_shapes_out_and_in_again_are_exact(empty):
    rng = np.random.default_rng(2)
    for k in range(8):
        empty.paint(rng.uniform(0, 1000, (4, 2)), float(rng.uniform(1, 40)), 1 + k % 2)
    empty.erase([(500, 500)], 60)
    data, state, kind = shapes_data(empty)
    assert kind == "shapes"
    back = Annotations(SHAPE, ["tumour", "stroma"])
    assert import_layer(back, Shapes(data, **state), 1) == len(data)
    np.testing.assert_array_equal(back.read(WHOLE), empty.read(WHOLE))
    assert back.undo() is not None
    assert not back.read(WHOLE).any()


def test_no_labels_make_an_empty_layer(empty):
    data, state, _ = shapes_data(empty)
    assert Shapes(data, ndim=2, **state).nshapes == 0


def test_shapes_of_all_kinds_by_hand(empty):
    layer = Shapes(ndim=2, scale=(2, 2))
    layer.add([[9.75, 9.75], [59.75, 109.75]], shape_type="rectangle")  # level-0 20..120 x 20..220
    layer.add([[300, 100], [300, 200], [400, 200], [400, 100]], shape_type="ellipse")
    layer.add([[200, 300], [200, 400]], shape_type="path", edge_width=10)
    assert import_layer(empty, layer, 2) == 3
    np.testing.assert_array_equal(empty.read((20, 20, 100, 200)), 2)
    assert (empty.read((0, 0, 300, 300)) == 2).sum() == 100 * 200
    # the inscribed polygon of 64 corners has 0.9984 of the ellipse's area
    assert (empty.read((600, 0, 300, 500)) == 2).sum() == pytest.approx(np.pi * 100 * 100 * 0.9984, rel=0.002)
    # 21 rows have their centre within 10 px of the line, and 317 points of a grid lie within 10 of one of them
    assert (empty.read((380, 560, 100, 300)) == 2).sum() == 200 * 21 + 317


@pytest.mark.parametrize("factor", [1, 4])
def test_labels_cover_the_pixels_that_napari_shows(empty, factor):
    values = np.random.default_rng(0).integers(0, 3, (100, 90)).astype(np.uint8)
    # the first pixel covers level-0 rows 8 to 8 + factor; napari places its centre
    layer = Labels(values, scale=(factor, factor), translate=[8 + factor / 2 - 0.5] * 2)
    assert import_layer(empty, layer, 1) == 2
    expected = values.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(empty.read((8, 8, *expected.shape)), expected)
    assert sum(empty.counts().values()) == (expected > 0).sum()


def test_what_does_not_fit_is_refused(empty):
    with pytest.raises(AnnotationError, match="not from Image"):
        import_layer(empty, Image(np.zeros((9, 9))), 1)
    with pytest.raises(AnnotationError, match="pixels of the slide"):
        import_layer(empty, Labels(np.ones((9, 9), np.uint8), scale=(3, 3)), 1)
    with pytest.raises(AnnotationError, match="no class 7"):
        import_layer(empty, Labels(np.full((9, 9), 7, np.uint8)), 1)
    named = Shapes([[[0, 0], [0, 9], [9, 9]]], shape_type="polygon", features={"class": ["fat"]})
    with pytest.raises(AnnotationError, match="'fat'"):
        import_layer(empty, named, 1)
    assert not empty.read(WHOLE).any()
