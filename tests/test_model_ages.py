"""A model predicts later as it did when it was saved, or says that it cannot."""

from __future__ import annotations

import lzma

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load, save_file

from napari_sparseseg import Session
from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.model import load_model, read_metadata
from napari_sparseseg.learning.model_file import PredictionRules
from tests.golden.make_model import ENCODER, SIDE, write_slide
from tests.helpers.data import ROOT, two_textures
from tests.helpers.data import write_slide as write_textures
from tests.helpers.model_files import rewrite
from tests.helpers.networks import model_of, two_speed

GOLDEN = ROOT / "tests" / "golden" / "models"
EDGES = ("background", "mirrored")


@pytest.fixture(scope="module", params=EDGES)
def old(request, tmp_path_factory):
    """A model of an earlier version with its slide, and the probabilities that this version gave."""
    folder = tmp_path_factory.mktemp("old")
    data = lzma.decompress((GOLDEN / f"{request.param}-edges.safetensors.xz").read_bytes())
    packed = folder / "packed.safetensors"
    packed.write_bytes(data)
    with safe_open(packed, framework="numpy") as opened:
        metadata = opened.metadata()
    encoder = {ENCODER + key: value.contiguous() for key, value in Encoder().net.state_dict().items()}
    save_file(load(data) | encoder, folder / "m.safetensors", metadata=metadata)
    expected = np.load(GOLDEN / f"{request.param}-edges.npz")["probabilities"]
    return folder / "m.safetensors", write_slide(folder / "slide.tif"), expected, request.param


def answer(session):
    return session.predict((0, 0, SIDE, SIDE))[1][:, ::4, ::4]


def test_a_model_without_a_word_about_edges_predicts_on_its_slide_as_it_did(old, tmp_path):
    path, slide, expected, edges = old
    assert read_metadata(path).rules.edges is None
    with Session(["stripes", "dots"]) as session:
        session.open(slide)
        session.load_model(path)
        # Another processor adds in another order.
        np.testing.assert_allclose(answer(session), expected, atol=1e-3)
        assert session.status.message == ""
        session.save_model(tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors").rules.edges == edges
    with Session(["stripes", "dots"]) as session:  # now it says so itself, on any slide
        session.open(write_textures(tmp_path / "other.tif", two_textures(128)))
        session.load_model(tmp_path / "again.safetensors")
        assert session.status.message == ""
        session.open(slide)
        np.testing.assert_allclose(answer(session), expected, atol=1e-3)


def test_the_two_kinds_of_edges_are_not_the_same():
    first, second = (np.load(GOLDEN / f"{edges}-edges.npz")["probabilities"] for edges in EDGES)
    assert np.abs(first - second).max() > 0.1


def test_without_its_slide_it_says_that_it_cannot_know(old, tmp_path):
    path, *_ = old
    with Session(["stripes", "dots"]) as session:
        session.open(write_textures(tmp_path / "other.tif", two_textures(128)))
        session.load_model(path)
        assert "did not record how it reads beyond a slide's edges" in session.status.message


def test_a_whole_slide_is_predicted_as_the_region_is(old, tmp_path):
    path, slide, expected, _ = old
    with Session(["stripes", "dots"]) as session:
        session.open(slide)
        session.load_model(path)
        session.predict_slide(tmp_path / "out.ome.zarr", tissue_only=False)
    import zarr

    labels = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")["labels/classes/0"][:]
    clear = np.abs(expected[0] - 0.5) > 0.01
    assert (labels[::4, ::4] == expected.argmax(0) + 1)[clear].all()


def test_a_model_saved_now_records_its_rules(tmp_path):
    model = model_of(two_speed())
    model.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", device="cpu").metadata.rules == PredictionRules("mirrored", 1, 2)
    other = model.with_rules(PredictionRules(edges="background"))
    other.save(tmp_path / "o.safetensors")
    assert read_metadata(tmp_path / "o.safetensors").rules.edges == "background"
    pixels = np.full((64, 64, 3), 180, np.uint8)
    np.testing.assert_array_equal(other.probabilities(pixels), model.probabilities(pixels))


@pytest.mark.parametrize(
    "rules",
    [
        {"edges": "wrapped"},
        {"normalisation": 2},
        {"tissue": 99},
        {"tissue": "1"},
        {"tissue": [1]},
        {"sharpness": 1},
        [1],
        "x",
    ],
)
def test_rules_of_a_later_version_are_refused_with_a_reason(tmp_path, rules):
    model_of(two_speed()).save(tmp_path / "m.safetensors")
    rewrite(tmp_path / "m.safetensors", lambda metadata: metadata.update(rules=rules))
    with pytest.raises(ModelError, match=r"does not know|cannot be read"):
        load_model(tmp_path / "m.safetensors", device="cpu")
