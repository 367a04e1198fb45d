"""OME-TIFF predictions, opened by tifffile and by hand from their tags."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_sparseseg.config import make_classes
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.ome_tiff import label_bands, read_record, write_ome_tiff
from napari_sparseseg.io.ome_zarr import PredictionStore, StoreLayout, create_store
from napari_sparseseg.slides import open_slide

CLASSES = make_classes([("tumour", "#e6194b"), ("stroma", "#3cb44b")])
SHAPE = (1300, 1701)


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (33, 43)), np.ones((40, 40))).astype(np.uint8)[: SHAPE[0], : SHAPE[1]]
    labels[512:1024, 512:1024] = 0
    placement = Placement(Frame((8.0, 4.0)), (0.25, 0.5))
    create_store(tmp_path / "s", StoreLayout(SHAPE, placement, CLASSES, uncertainty=True), {"model": "äb"})
    store = PredictionStore(tmp_path / "s")
    store.write(Box(0, 0, 2048, 2048), labels, 255 - labels)
    store.build_pyramid()
    seen = []
    path = tmp_path / "a.ome.tif"
    write_ome_tiff(path, store, placement, CLASSES, lambda done, total: seen.append((done, total)))
    return path, store, labels, seen


def test_two_images_with_their_pyramids(made):
    path, store, labels, _ = made
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert [s.name for s in tiff.series] == ["classes", "uncertainty"]
        for series, levels in zip(tiff.series, (store.labels, store.uncertainty), strict=True):
            assert len(series.levels) == len(levels) == 4
            for a, b in zip(series.levels, levels, strict=True):
                np.testing.assert_array_equal(a.asarray(), b[:])
        np.testing.assert_array_equal(tiff.series[0].asarray(), labels)
        page = tiff.pages[0]
        assert len(page.subifds) == 3
        assert page.compression.name == "ADOBE_DEFLATE"
        assert page.tile == (512, 512)


def test_pixel_size_in_ome_and_in_tags(made):
    path, *_ = made
    with tifffile.TiffFile(path) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"][0]["Pixels"]
        assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeX"]) == (2.0, 2.0)
        assert pixels["PhysicalSizeXUnit"] == "µm"
        across, per = tiff.pages[0].tags["XResolution"].value
        assert across / per == pytest.approx(1e4 / 2.0)
        legend = tifffile.xml2dict(tiff.ome_metadata)["OME"]["StructuredAnnotations"]["MapAnnotation"][0]
        assert [m["value"] for m in legend["Value"]["M"]] == ["tumour #e6194b", "stroma #3cb44b"]


def test_our_own_slide_reader_opens_it(made):
    path, _, labels, _ = made
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((2.0, 2.0))
        np.testing.assert_array_equal(slide.read(Box(0, 0, *SHAPE))[..., 0], labels)


def test_labels_stream_back_in_bands(made):
    path, _, labels, _ = made
    bands = list(label_bands(path))
    assert [len(b) for b in bands] == [512, 512, 276]
    np.testing.assert_array_equal(np.concatenate(bands), labels)


def test_the_record_comes_back_and_other_files_have_none(made, tmp_path):
    path, *_ = made
    assert read_record(path) == {"model": "äb"}
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((4, 4), np.uint8))
    (tmp_path / "text.tif").write_text("no tiff")
    for name in ("plain.tif", "text.tif", "missing.tif"):
        assert read_record(tmp_path / name) == {}


def test_progress_counts_every_tile(made):
    *_, seen = made
    # 3 x 4 tiles, then 2 x 2, 1, 1; twice.
    assert seen == [(n, 36) for n in range(37)]
