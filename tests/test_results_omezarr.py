"""OME-Zarr predictions, opened by the reference reader and checked at landmarks."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store, majority, mean

CLASSES = (ClassDef(2, "tumour", "#e6194b"), ClassDef(7, "stroma", "#3cb44b"))
SHAPE = (2500, 2301)


def make(path, version="0.4", mpp=(0.25, 0.5), downsample=(8.0, 4.0)):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.choice([0, 2, 7], (65, 65)), np.ones((40, 40))).astype(np.uint8)[: SHAPE[0], : SHAPE[1]]
    doubt = rng.integers(0, 256, SHAPE).astype(np.uint8)
    layout = StoreLayout(SHAPE, Placement(Frame(downsample), mpp), CLASSES, uncertainty=True, version=version)
    create_store(path, layout, {"model": "abc"})
    store = PredictionStore(path)
    for box in (Box(0, 0, 2048, 2048), Box(0, 2048, 2048, 2048), Box(2048, 0, 2048, 2048), Box(2048, 2048, 2048, 2048)):
        padded = [np.pad(a[box.slices()], ((0, 10), (0, 10))) for a in (labels, doubt)]
        store.write(box, *padded)
    store.build_pyramid()
    return labels, doubt


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_reference_reader_finds_image_labels_names_and_colours(tmp_path, version):
    labels, doubt = make(tmp_path / "a.ome.zarr", version)
    nodes = list(Reader(parse_url(tmp_path / "a.ome.zarr"))())
    by_name = {node.zarr.basename(): node for node in nodes}
    image, classes = by_name["a.ome.zarr"], by_name["classes"]
    for node in (image, classes):
        np.testing.assert_array_equal(node.data[0].compute(), labels)
        assert [level.shape for level in node.data[:3]] == [(2500, 2301), (1250, 1151), (625, 576)]
        assert max(node.data[-1].shape) <= 256
    assert classes.metadata["properties"][2]["name"] == "tumour"
    assert classes.metadata["color"][7] == pytest.approx([0x3C / 255, 0xB4 / 255, 0x4B / 255, 1])
    assert [axis["unit"] for axis in image.metadata["axes"]] == ["micrometer"] * 2
    (uncertainty, *_) = Reader(parse_url(tmp_path / "a.ome.zarr" / "uncertainty"))()
    np.testing.assert_array_equal(uncertainty.data[0].compute(), doubt)


def test_landmarks_lie_in_place_on_every_level(tmp_path):
    make(tmp_path / "a.ome.zarr")
    layout = PredictionStore(tmp_path / "a.ome.zarr")
    # A square of label pixels 1024..1535 x 512..1023: its corners on the slide follow from the downsample alone.
    for level in layout.labels:
        level[:] = 0
    layout.labels[0][1024:1536, 512:1024] = 7
    layout.build_pyramid()
    centre_um = np.array([(1280 * 8 - 0.5) * 0.25, (768 * 4 - 0.5) * 0.5])  # from the centre of level-0 pixel (0, 0)
    (image, *_) = Reader(parse_url(tmp_path / "a.ome.zarr"))()
    for data, (scale, shift) in zip(image.data, image.metadata["coordinateTransformations"], strict=True):
        pixel = np.argwhere(data.compute() == 7).mean(axis=0)
        found = pixel * scale["scale"] + shift["translation"]
        assert np.all(np.abs(found - centre_um) <= 0.5 * np.array(scale["scale"]))
        np.testing.assert_allclose(found, centre_um, atol=1e-6)


def test_without_mpp_lengths_are_level_0_pixels_and_have_no_unit(tmp_path):
    make(tmp_path / "a.ome.zarr", mpp=None)
    (image, *_) = Reader(parse_url(tmp_path / "a.ome.zarr"))()
    assert all("unit" not in axis for axis in image.metadata["axes"])
    assert image.metadata["coordinateTransformations"][0][0]["scale"] == [8.0, 4.0]
    assert image.metadata["coordinateTransformations"][0][1]["translation"] == [3.5, 1.5]


def test_version_0_5_has_fewer_files(tmp_path):
    make(tmp_path / "four.ome.zarr")
    make(tmp_path / "five.ome.zarr", "0.5")
    count = {
        name: sum(p.is_file() for p in (tmp_path / name).rglob("*")) for name in ("four.ome.zarr", "five.ome.zarr")
    }
    assert count["five.ome.zarr"] < 0.6 * count["four.ome.zarr"]
    assert zarr.open_group(tmp_path / "five.ome.zarr", mode="r")["labels/classes/0"].shards == (2048, 2048)


def test_the_record_is_kept(tmp_path):
    make(tmp_path / "a.ome.zarr")
    assert PredictionStore(tmp_path / "a.ome.zarr", "r").record == {"model": "abc"}


def test_bands_are_the_rows_in_order(tmp_path):
    labels, _ = make(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(
        np.concatenate(list(PredictionStore(tmp_path / "a.ome.zarr", "r").bands(300))), labels
    )


def test_halving_by_hand():
    block = np.array([[1, 1, 1, 2, 3, 4, 5, 6], [2, 2, 3, 2, 5, 4, 7, 8]], np.uint8)
    np.testing.assert_array_equal(majority(block), [[1, 2, 4, 5]])
    np.testing.assert_array_equal(mean(np.array([[0, 255], [255, 255]], np.uint8)), [[191]])


def test_what_is_no_prediction_is_refused(tmp_path):
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    for name in ("other.zarr", "missing.zarr"):
        with pytest.raises(PredictionError, match="not a prediction"):
            PredictionStore(tmp_path / name, "r")
    make(tmp_path / "a.ome.zarr")
    with pytest.raises(PredictionError, match="another output"):
        create_store(tmp_path / "a.ome.zarr", StoreLayout((1, 1), Placement(Frame(), None), CLASSES), {})
