"""A transformer from a file in a session: train, look, predict a slide."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import timm
import torch
from safetensors.torch import save_file

from napari_sparseseg import Session, load_model
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.vit import VitMaps
from tests.helpers.data import two_textures, write_slide

NAME = "test_vit2"  # of timm: half a million parameters, tokens of 16 px, LayerScale, a register


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(5)
    net = timm.create_model(NAME, pretrained=False)
    for name, value in net.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(value, 0.5, 0.1)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_slide(folder / "a.tif", two_textures(640))


def paint(annotations):
    annotations.paint([(60, 60), (560, 120), (300, 240)], 8, 1)
    annotations.paint([(60, 400), (560, 440), (300, 560)], 8, 2)


def test_train_look_and_predict_a_slide(weights, slide, tmp_path):
    config = TrainConfig(encoder=f"{NAME}@{weights}", device="cpu", batch_size=1)
    with Session(["stripes", "dots"], config=config) as session:
        session.open(slide)
        paint(session.annotations)
        session.train(steps=3, wait=True)
        encoder = session.model.net.features.encoder
        assert isinstance(encoder.net, VitMaps)
        assert encoder.strides == (2, 4, 8, 16, 16, 16, 16)
        assert session.model.net.decoder is not None
        labels, probabilities = session.predict((200, 40, 240, 560))
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        assert (labels[:, :200] == 1).mean() > 0.9
        assert (labels[:, -200:] == 2).mean() > 0.9
        session.predict_slide(tmp_path / "out.ome.tif")
        session.save_model(tmp_path / "m.safetensors")
        again = load_model(tmp_path / "m.safetensors", device="cpu")
        pixels = two_textures(288)
        np.testing.assert_allclose(again.probabilities(pixels), session.model.probabilities(pixels), atol=1e-6)
        session.train(steps=1, wait=True)  # goes on with the same network
        assert session.status.step > 3
    whole = tifffile.imread(tmp_path / "out.ome.tif")
    assert (whole[40:600, 40:280] == 1).mean() > 0.9
    assert (whole[40:600, 360:600] == 2).mean() > 0.9
    # The live view and the slide are cut differently: they may differ, but hardly anywhere.
    assert (whole[200:440, 40:600] == labels).mean() > 0.98


def test_features_fit_into_float16_and_no_encoder_is_trained(weights):
    encoder = Encoder(f"{NAME}@{weights}").eval()
    assert not encoder.tunable
    with torch.no_grad():
        for values in encoder(torch.rand(1, 3, 272, 400)):
            assert torch.isfinite(values.half()).all()
