"""Networks: how far a pixel really looks, and what happens to outputs when classes change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps
from napari_sparseseg.learning.head import Head
from napari_sparseseg.learning.model import load_model
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet, with_classes
from tests.helpers.model_files import rewrite
from tests.helpers.networks import model_of


def two_speed(context):
    torch.manual_seed(0)
    maps = FeatureMaps(Encoder(), context)
    decoder = Decoder(maps.channels, maps.strides, (16, 12, 8, 8), 2)
    return TwoSpeedNet(maps, Head(maps.channels, 16, 2), decoder, 0.5)


@pytest.mark.parametrize(
    ("net", "at"),
    [(lambda: two_speed(1), 320), (lambda: two_speed(3), 327), (lambda: PlainUNet(3, 2, width=4), 333)],
    ids=["no context", "context", "plain"],
)
def test_a_pixel_reaches_no_further_than_said(net, at):
    net = net().eval()
    image = torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., at, at] = 1 - changed[..., at, at]
    with torch.no_grad():
        rows, columns = torch.nonzero((net(image) != net(changed))[0].any(0), as_tuple=True)
    assert len(rows) > 100
    for cells in (rows, columns):
        assert cells.min() >= at - net.receptive_field
        assert cells.max() <= at + net.receptive_field


def test_share_mixes_head_and_decoder():
    net = two_speed(1).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        half = net(image)
        net.share = 0.0
        head = net(image)
        net.share = 1.0
        decoder = net(image)
    torch.testing.assert_close(half, (head + decoder) / 2)
    assert not torch.allclose(head, decoder, atol=1e-3)


@pytest.mark.parametrize("plain", [False, True])
def test_classes_that_stay_keep_their_scores(plain):
    torch.manual_seed(0)
    if plain:
        net = PlainUNet(1, 3, width=4).eval()
        scores = lambda n: n.logits(image)  # noqa: E731
        image = torch.rand(1, 1, 32, 32)
    else:
        net = Decoder((2, 3), (2, 4), (4, 4), 3)
        image = [torch.rand(1, 2, 16, 16), torch.rand(1, 3, 8, 8)]
        scores = lambda n: n(image)  # noqa: E731
    moved = with_classes(net, (4, 9, 2), (2, 200, 4))
    with torch.no_grad():
        before, after = scores(net), scores(moved)
    torch.testing.assert_close(after[:, 0], before[:, 2])
    torch.testing.assert_close(after[:, 2], before[:, 0])
    assert torch.equal(after[:, 1], torch.full_like(after[:, 1], -4.0))


def test_standardised_maps_have_mean_0_and_spread_1():
    decoder = Decoder((2, 1), (2, 4), (4, 4), 2)
    rows = torch.randn(500, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([5.0, -3.0, 0.0])
    decoder.standardise(rows)
    unit = (rows - decoder.mean) / decoder.std
    torch.testing.assert_close(unit.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit.std(0), torch.ones(3))


def test_decoder_is_the_stages_written_plainly_and_in_bands_of_rows_too():
    torch.manual_seed(0)
    decoder = Decoder((5, 3, 2), (2, 4, 4), (8, 6), 3)
    decoder.mean.normal_()
    decoder.std.uniform_(0.5, 2)
    maps = [torch.randn(2, 5, 640, 256), torch.randn(2, 3, 320, 128), torch.randn(2, 2, 320, 128)]
    maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    keep = [torch.empty(2, m.shape[1], 1, 1).bernoulli_(0.5) * 2 for m in maps]
    mean, std = (v.split((5, 3, 2)) for v in (decoder.mean, decoder.std))

    def plain(factors):
        unit = [
            (m - a.view(-1, 1, 1)) / b.view(-1, 1, 1) * k for m, a, b, k in zip(maps, mean, std, factors, strict=True)
        ]
        x = torch.empty(2, 0, 320, 128)
        for parts, stage in zip((unit[1:], unit[:1]), decoder.stages, strict=True):
            before = F.interpolate(x, size=parts[0].shape[-2:], mode="bilinear") if x.shape[1] else x
            x = stage.reduce(torch.cat([*parts, before], 1))
            x = F.relu(stage.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            x = x + F.relu(stage.mix(x))
        return decoder.scores(x)

    with torch.no_grad():
        torch.testing.assert_close(decoder(maps), plain([1, 1, 1]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoder(maps, keep), plain(keep), atol=1e-4, rtol=1e-4)
    # with gradients no bands are cut
    torch.testing.assert_close(decoder(maps, keep), plain(keep), atol=1e-4, rtol=1e-4)


def test_a_plain_unet_with_batch_normalisation_is_refused_by_name(tmp_path):
    path = tmp_path / "old.safetensors"
    model_of(PlainUNet(3, 2, width=4)).save(path)
    assert load_model(path, device="cpu").net.depth == 4
    rewrite(path, lambda metadata: metadata["extra"]["net"].pop("norm"))
    with pytest.raises(ModelError, match=r"batch normalisation.*train again"):
        load_model(path, device="cpu")
