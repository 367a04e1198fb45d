"""The prediction layer: where it is drawn, what it shows, and that it never computes."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.gui.layers.prediction import LiveLayer, Shown
from napari_sparseseg.gui.layers.prediction_colours import class_colours, dim_codes
from napari_sparseseg.gui.sections.predict.areas import areas, areas_csv
from napari_sparseseg.prediction.live_view import LiveView
from napari_sparseseg.prediction.tile_store import TILE, Tile, TileStore, encode
from tests.helpers.mouse import Mouse, look_at, pump

CLASSES = make_classes([("tumour", "#ff0000"), ("stroma", "#00ff00"), ("glass", "#0000ff")])


def full_tile(label: int, *, certain: float = 0.9) -> Tile:
    probabilities = np.full((3, TILE, TILE), (1 - certain) / 2, np.float32)
    probabilities[label - 1] = certain
    labels = np.full((TILE, TILE), label, np.uint8)
    return Tile(encode(labels, probabilities, None), 1, 1)


@pytest.fixture
def store() -> TileStore:
    return TileStore((4 * TILE, 4 * TILE), 7)


def colour_at(viewer, mouse: Mouse, y: float, x: float) -> np.ndarray:
    """What the canvas shows at world (y, x), as RGB."""
    shot = viewer.screenshot(canvas_only=True, flash=False)
    cx, cy = mouse.canvas(y, x)
    ratio = shot.shape[1] / mouse.size[0]
    return shot[int(cy * ratio), int(cx * ratio), :3].astype(int)


def test_a_tile_is_drawn_where_the_slide_has_it(viewer, mouse, store):
    """At 4 level-0 px per prediction px tile (0, 1) covers rows 0..2047 and columns 2048..4095 of level 0."""
    layer = LiveLayer(store, Frame((4.0, 4.0)), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    layer.show(Shown(), CLASSES)
    layer.update_box(store.put((0, 0, 1), full_tile(1)))
    look_at(viewer, 2048, 2048, 0.1)
    red, dark = (255, 0, 0), (0, 0, 0)
    for y, x, expected in [
        (1024, 3000, red),
        (1024, 2070, red),
        (2030, 3000, red),
        (1024, 2020, dark),
        (2070, 3000, dark),
    ]:
        assert np.abs(colour_at(viewer, mouse, y, x) - expected).max() <= 3, (y, x)


def test_pixel_edges_agree_with_the_image_below(viewer, mouse, store):
    """A prediction pixel of 4 level-0 pixels covers [-0.5, 3.5) in napari's world, as image pixels 0..3 do."""
    tile = full_tile(2)
    tile.data[0] = np.indices((TILE, TILE)).sum(axis=0) % 2 + 1
    layer = LiveLayer(store, Frame((4.0, 4.0)), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    layer.show(Shown(), CLASSES)
    layer.update_box(store.put((0, 0, 0), tile))
    look_at(viewer, 8, 8, 40)
    first, second = (255, 0, 0), (0, 255, 0)
    for y, x, expected in [
        (-0.4, -0.4, first),
        (3.4, 3.4, first),
        (3.4, 3.6, second),
        (3.6, 3.6, first),
        (7.4, 3.6, first),
    ]:
        assert np.abs(colour_at(viewer, mouse, y, x) - expected).max() <= 3, (y, x)


def test_tiles_that_come_later_are_uploaded_alone(viewer, store):
    layer = LiveLayer(store, Frame(), CLASSES)
    viewer.add_layer(layer)
    look_at(viewer, TILE, TILE, 0.5)
    viewer.screenshot(flash=False)  # the texture has the size of the tile once it was drawn
    uploads = []
    layer.events.labels_update.connect(lambda event: uploads.append(event.data.shape))
    sliced = []
    layer.events.set_data.connect(lambda event: sliced.append(event))
    layer.update_box(store.put((0, 1, 1), full_tile(3)))
    pump(0.05)
    assert len(uploads) == 1
    assert max(uploads[0]) <= TILE
    assert not sliced


@pytest.mark.parametrize(
    ("what", "alpha"),
    [(Shown("probability", 1), 0.9), (Shown("probability", 2), 0.05), (Shown("uncertainty"), 0.3589)],
)
def test_probability_and_uncertainty_are_as_opaque_as_they_are_high(viewer, store, what, alpha):
    """Entropy of (0.9, 0.05, 0.05) over log 3: 0.3945 / 1.0986 = 0.3590."""
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    store.put((0, 0, 0), full_tile(1))
    layer.show(what, CLASSES)
    look_at(viewer, 256, 256, 1.0)
    value = layer.get_value((256.0, 256.0), world=True)[1]
    assert value / 255 == pytest.approx(alpha, abs=0.004)
    shown = layer._slice.image.view[256, 256]  # the lowest bit says that it is of the present model
    assert shown == value | 1
    assert layer.colormap.map(np.array([shown]))[0, 3] == pytest.approx(alpha, abs=0.006)


def test_probability_takes_the_class_colour(viewer, mouse, store):
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    store.put((0, 0, 0), full_tile(2, certain=0.998))
    layer.show(Shown("probability", 2), CLASSES)
    look_at(viewer, 256, 256, 1.0)
    assert np.abs(colour_at(viewer, mouse, 256, 256) - (0, 255, 0)).max() <= 4


def test_a_class_the_model_does_not_know_shows_the_class_map_instead(store):
    layer = LiveLayer(store, Frame(), CLASSES)
    layer.show(Shown("probability", 9), CLASSES)
    assert layer.shown == Shown()


def test_it_cannot_be_drawn_on(viewer, mouse, store):
    layer = LiveLayer(store, Frame(), CLASSES)
    viewer.add_layer(layer)
    store.put((0, 0, 0), full_tile(1))
    layer.refresh()
    look_at(viewer, 256, 256, 1.0)
    mouse.key("P")
    mouse.drag([(300, 300), (350, 350)])
    assert not layer.editable
    assert (store.get((0, 0, 0)).data[0] == 1).all()


def test_hidden_classes_are_transparent():
    colours = class_colours(CLASSES, hidden={2})
    alpha = colours.map(np.array([0, 1, 2, 3, 77], np.uint8))[:, 3]
    np.testing.assert_array_equal(alpha, [0, 1, 0, 1, 0])


class _Live(LiveView):
    """What `areas` reads of a `LiveView`, over a store that a test has filled."""

    def __init__(self, store: TileStore, frame: Frame, mpp) -> None:
        self.store, self.frame, self.slide = store, frame, self
        self.mpp = mpp


def test_areas_by_hand(store):
    """Two tiles of 512 x 512 px, 2 level-0 px each, at 0.5 um: 1024 * 0.5 um = 0.512 mm, squared 0.262144 mm2."""
    store.put((0, 0, 0), full_tile(1))
    store.put((0, 0, 1), full_tile(3))
    rows = areas(_Live(store, Frame((2.0, 2.0)), (0.5, 0.5)), Box(0, 0, 1024, 2048), CLASSES)
    assert [a.name for a in rows] == ["tumour", "stroma", "glass"]
    assert [a.mm2 for a in rows] == pytest.approx([0.262144, 0.0, 0.262144])
    assert [a.share for a in rows] == pytest.approx([0.5, 0.0, 0.5])
    half = areas(_Live(store, Frame((2.0, 2.0)), None), Box(0, 0, 1024, 1536), CLASSES)
    assert [a.share for a in half] == pytest.approx([2 / 3, 0.0, 1 / 3])
    assert half[0].mm2 is None
    assert half[0].pixels == 1024 * 1024


def test_areas_of_nothing_predicted(store):
    assert areas(_Live(store, Frame(), (1.0, 1.0)), Box(0, 0, 500, 500), CLASSES) == []
    assert areas(_Live(store, Frame(), (1.0, 1.0)), Box(-900, -900, 500, 500), CLASSES) == []


def test_areas_as_csv(store):
    store.put((0, 0, 0), full_tile(1))
    names = make_classes([('tumour, "solid"', "#ff0000"), ("stroma", "#00ff00"), ("glass", "#0000ff")])
    text = areas_csv(areas(_Live(store, Frame(), (1.0, 1.0)), Box(0, 0, 512, 512), names))
    assert text.splitlines()[:2] == ["class,area_mm2,area_px,percent", '"tumour, ""solid""",0.262144,262144,100.00']


@pytest.mark.parametrize("zoom", [1.0, 0.25])
def test_what_an_outdated_model_said_is_dimmed_until_replaced(viewer, mouse, store, zoom):
    """Half as opaque over black and halfway to its grey: red (255, 0, 0) has grey 76, so (166, 38, 38) / 2.

    At 1.0 tiles of level 0 are shown, at 0.25 the coarsest level, an array that napari keeps.
    """
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    for i, j in np.ndindex(4, 4):
        store.put((0, i, j), full_tile(1))
    layer.show(Shown(), CLASSES)
    look_at(viewer, 2 * TILE, 2 * TILE, zoom)
    here, there = (2 * TILE - 60, 2 * TILE - 60), (2 * TILE + 60, 2 * TILE + 60)
    layer.outdate(1)
    assert np.abs(colour_at(viewer, mouse, *here) - (255, 0, 0)).max() <= 3
    layer.outdate(2)
    assert np.abs(colour_at(viewer, mouse, *here) - (83, 19, 19)).max() <= 3
    layer.update_box(store.put((0, 1, 1), Tile(full_tile(1).data, 2, 2)))
    assert np.abs(colour_at(viewer, mouse, *here) - (255, 0, 0)).max() <= 3
    assert np.abs(colour_at(viewer, mouse, *there) - (83, 19, 19)).max() <= 3
    assert layer.label_at_world(there) == 1, "the value is not dimmed"
    assert (store.top[0] == 1).all()


def test_after_panning_the_same_tiles_are_dimmed(viewer, mouse, store):
    """What comes on screen is as large as what was there before, but other tiles of it are outdated."""
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    for i, j in np.ndindex(4, 4):
        store.put((0, i, j), Tile(full_tile(1).data, 2 if j == 1 else 1, 1))
    layer.show(Shown(), CLASSES)
    look_at(viewer, 2 * TILE, 2 * TILE, 1.0)
    layer.outdate(2)
    for x in (2 * TILE, 1.5 * TILE, 2.5 * TILE, 1.5 * TILE):
        look_at(viewer, 2 * TILE, x, 1.0)
        assert np.abs(colour_at(viewer, mouse, 2 * TILE, 2 * TILE - 60) - (255, 0, 0)).max() <= 3
        assert np.abs(colour_at(viewer, mouse, 2 * TILE, 2 * TILE + 60) - (83, 19, 19)).max() <= 3


def test_an_outdated_probability_is_half_as_opaque(viewer, mouse, store):
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    store.put((0, 0, 0), full_tile(1))
    layer.show(Shown("probability", 1), CLASSES)
    look_at(viewer, 256, 256, 1.0)
    fresh = colour_at(viewer, mouse, 256, 256)
    layer.outdate(2)
    assert (
        np.abs(colour_at(viewer, mouse, 256, 256) - (fresh[0] * 0.325, fresh[0] * 0.075, fresh[0] * 0.075)).max() <= 4
    )


def test_nothing_is_uploaded_when_what_is_shown_stays_present(viewer, store):
    """A new model while the screen is predicted by it already: no blink, no work."""
    layer = LiveLayer(store, Frame(), CLASSES)
    viewer.add_layer(layer)
    for i, j in np.ndindex(4, 4):
        store.put((0, i, j), full_tile(1))
    look_at(viewer, TILE, TILE, 1.0)
    viewer.screenshot(flash=False)
    uploads = []
    layer.events.labels_update.connect(lambda event: uploads.append(event.data.shape))
    layer.outdate(1)
    assert not uploads
    layer.outdate(2)
    assert len(uploads) == 1


def test_as_many_classes_as_there_are_ids_are_not_dimmed():
    classes = make_classes([f"c{k}" for k in range(200)])
    codes = dim_codes(classes)
    assert len(set(codes[1:56].tolist()) & {c.id for c in classes}) == 0
    assert codes[56:201].tolist() == list(range(56, 201))


def test_the_layer_goes_on_with_the_tiles_of_another_model(viewer, mouse, store):
    """Its own tiles, and no others, in the colours of its classes."""
    layer = LiveLayer(store, Frame(), CLASSES, opacity=1.0)
    viewer.add_layer(layer)
    layer.show(Shown(), CLASSES)
    store.put((0, 0, 0), full_tile(1))
    layer.outdate(5)
    look_at(viewer, TILE, TILE, 0.5)
    classes = make_classes([("gland", "#ff0000"), ("muscle", "#00ffff"), ("glass", "#0000ff")])
    other = TileStore((4 * TILE, 4 * TILE), 7)
    layer.follow(other, classes)
    layer.show(Shown(), classes)
    pump(0.1)
    assert np.abs(colour_at(viewer, mouse, 256, 256)).max() <= 3, "the old tile is gone"
    layer.update_box(other.put((0, 1, 1), full_tile(2)))
    pump(0.1)
    assert np.abs(colour_at(viewer, mouse, 768, 768) - (0, 255, 255)).max() <= 3
    store.put((0, 1, 1), full_tile(1))
    layer.refresh()
    assert np.abs(colour_at(viewer, mouse, 768, 768) - (0, 255, 255)).max() <= 3, "no later tile of the old model"
