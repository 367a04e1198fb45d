"""Encoders known by name against the networks of their publishers' libraries, with random weights.

Width and depth are reduced, but for the check of names and shapes: a billion random weights would take minutes.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoder_info import encoder_info
from napari_sparseseg.learning.encoder_registry import KNOWN, known
from napari_sparseseg.learning.encoders import Encoder, plan
from napari_sparseseg.learning.vit import cell_of, four_blocks, windows

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "encoder.md"
TRANSFORMERS = [e for e in KNOWN if e.patch]
TIMM = [e.name for e in TRANSFORMERS if e.name not in ("phikon-v2", "midnight-12k", "hibou-b", "hibou-l")]
SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def image():
    return torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def with_scales(net):
    """LayerScale of 1e-5 would hide what a block does: random weights, for every entry."""
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
            if parameter.ndim == 1:
                parameter.add_(0.7)
    return net.eval()


def seen(image, entry):
    """What the network sees of an image of one window."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in entry.normalisation)
    side = image.shape[-1] // cell_of(entry.patch) * entry.patch
    image = (image - mean) / std
    if side == image.shape[-1]:
        return image
    return torch.nn.functional.interpolate(image, size=side, mode="bilinear", align_corners=False, antialias=True)


def timm_network(entry):
    """As the publisher's page says it is made, but small."""
    options = dict(entry.arguments)
    if "mlp_layer" in options:
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return with_scales(timm.create_model(entry.network, **{**options, **SMALL}, num_classes=0, dynamic_img_size=True))


@pytest.mark.parametrize("name", TIMM)
def test_features_are_those_of_timm(name, tmp_path, image):
    entry = known(name)
    net = timm_network(entry)
    torch.save(net.state_dict(), tmp_path / "w.bin")
    encoder = Encoder(f"{name}@{tmp_path / 'w.bin'}", arguments=SMALL).eval()
    assert encoder.architecture == name
    with torch.no_grad():
        found = encoder(image)
        expected = net.forward_intermediates(
            seen(image, entry), indices=list(four_blocks(4)), norm=True, intermediates_only=True
        )
    assert len(found) == len(encoder.strides) == len(encoder.channels)
    for a, b in zip(found[-4:], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert a.std() > 0.1


def transformers_network(name):
    import transformers

    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 224}
    match name:
        case "phikon-v2":
            config = transformers.Dinov2Config(**sizes, patch_size=16)
            return transformers.Dinov2Model(config)
        case "midnight-12k":
            config = transformers.Dinov2Config(**sizes, patch_size=14, use_swiglu_ffn=True)
            return transformers.Dinov2Model(config)
        case "hibou-b" | "hibou-l":
            config = transformers.Dinov2WithRegistersConfig(**sizes, patch_size=14, use_swiglu_ffn=True)
            return transformers.Dinov2WithRegistersModel(config)
        case "dinov2-s":
            config = transformers.Dinov2Config(**sizes | {"image_size": 518}, patch_size=14)
            return transformers.Dinov2Model(config)
    config = transformers.DINOv3ViTConfig(**sizes, patch_size=16, intermediate_size=192, num_register_tokens=4)
    return transformers.DINOv3ViTModel(config)


@pytest.mark.parametrize("name", ["phikon-v2", "midnight-12k", "hibou-b", "hibou-l", "dinov2-s", "dinov3-s"])
def test_features_are_those_of_transformers(name, tmp_path):
    """At the size of its own training, where no position is interpolated: the two libraries do that differently."""
    entry = known(name)
    net = with_scales(transformers_network(name))
    net.save_pretrained(tmp_path)
    ratio = {"midnight-12k": 5.34, "hibou-b": 5.34, "hibou-l": 5.34}  # 256 / 48, as transformers rounds it
    arguments = {**SMALL, "mlp_ratio": ratio[name]} if name in ratio else SMALL
    encoder = Encoder(f"{name}@{tmp_path / 'model.safetensors'}", arguments=arguments).eval()
    side = {"phikon-v2": 224, "dinov2-s": 592}.get(name, 256)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    encoder.net.window = 37
    with torch.no_grad():
        found = encoder(image)[-4:]
        states = net(seen(image, entry), output_hidden_states=True).hidden_states[1:]
        norm = net.layernorm if hasattr(net, "layernorm") else net.norm
        lead = 1 + (4 if name in ("hibou-b", "hibou-l", "dinov3-s") else 0)
        expected = [norm(s)[:, lead:].transpose(1, 2) for s in states]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.flatten(2), b, rtol=0, atol=1e-5)
        assert a.std() > 0.1


@pytest.mark.parametrize("entry", TRANSFORMERS, ids=lambda e: e.name)
def test_the_table_describes_networks_of_full_size(entry):
    net = plan(entry.name, {}, classifier=False)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(entry.parameters, abs=0.06)
    assert net.patch_embed.patch_size == (entry.patch, entry.patch)
    assert entry.blocks == four_blocks(len(net.blocks))


# Names and shapes of entries as published, of full size: what each has that its neighbours in the table have not.
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("uni", {"pos_embed": (1, 197, 1024), "blocks.23.ls2.gamma": (1024,)}),
        ("uni2-h", {"reg_token": (1, 8, 1536), "pos_embed": (1, 256, 1536), "blocks.23.mlp.fc1.weight": (8192, 1536)}),
        ("virchow", {"pos_embed": (1, 257, 1280), "blocks.31.mlp.fc2.weight": (1280, 3416)}),
        ("virchow2", {"reg_token": (1, 4, 1280), "pos_embed": (1, 261, 1280)}),
        ("h-optimus-0", {"reg_token": (1, 4, 1536), "blocks.39.mlp.fc2.weight": (1536, 4096)}),
        ("gigapath-flash", {"blocks.11.mlp.fc1.weight": (2048, 384), "blocks.11.mlp.fc2.weight": (384, 1024)}),
        ("phikon-v2", {"pos_embed": (1, 197, 1024), "patch_embed.proj.weight": (1024, 3, 16, 16)}),
        ("midnight-12k", {"pos_embed": (1, 257, 1536), "blocks.39.mlp.fc1.weight": (8192, 1536)}),
        ("hibou-l", {"reg_token": (1, 4, 1024), "blocks.23.mlp.fc2.weight": (1024, 2736)}),
    ],
)
def test_entries_of_full_size_have_the_published_shapes(name, shapes):
    found = plan(name, {}, classifier=False).state_dict()
    assert {key: tuple(found[key].shape) for key in shapes} == shapes


def test_layer_scales_are_not_dropped_without_a_word(tmp_path):
    net = timm_network(known("uni"))
    torch.save(net.state_dict(), tmp_path / "uni.bin")
    with pytest.raises(ModelError, match=r"no place for 8 entries .* first is blocks\.0\.ls1\.gamma"):
        Encoder(f"vit_large_patch16_224@{tmp_path / 'uni.bin'}", arguments=SMALL)


def test_a_missing_and_a_foreign_entry_are_named(tmp_path):
    state = timm_network(known("uni")).state_dict()
    gone = {k: v for k, v in state.items() if not k.startswith("blocks.3.ls")}
    save_file(gone, tmp_path / "gone.safetensors")
    with pytest.raises(ModelError, match=r"blocks\.3\.ls1\.gamma is missing, expected \(48,\), and 1 more"):
        Encoder(f"uni@{tmp_path / 'gone.safetensors'}", arguments=SMALL)
    save_file(state | {"decoder.weight": torch.zeros(3)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match=r"no place for 1 entries of the file, the first is decoder\.weight"):
        Encoder(f"uni@{tmp_path / 'more.safetensors'}", arguments=SMALL)
    save_file({f"teacher.backbone.{k}": v for k, v in state.items()}, tmp_path / "wrapped.safetensors")
    Encoder(f"uni@{tmp_path / 'wrapped.safetensors'}", arguments=SMALL)


def test_entries_a_convolutional_network_has_no_place_for_are_named(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    save_file(state | {"layer1.0.scale": torch.ones(64)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"first is layer1\.0\.scale"):
        Encoder(f"resnet18@{tmp_path / 'w.safetensors'}")


def test_the_resnet_of_the_table_is_read_with_its_own_normalisation(tmp_path):
    net = timm.create_model("resnet50", num_classes=0)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    encoder = Encoder(f"lunit-resnet50@{tmp_path / 'w.safetensors'}").eval()
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor(known("lunit-resnet50").normalisation[0]))
    whole = timm.create_model("resnet50", features_only=True, out_indices=(0, 1, 2, 3)).eval()
    whole.load_state_dict(net.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(encoder(image), whole((image - encoder.mean) / encoder.std), strict=True):
            torch.testing.assert_close(a, b)


def test_windows_cover_every_token_and_overlap():
    for side in range(1, 200):
        starts = windows(side, 16)
        assert starts[0] == 0
        assert starts[-1] == max(0, side - 16)
        assert all(0 < b - a <= 14 for a, b in pairwise(starts))


@pytest.fixture
def small():
    torch.manual_seed(4)
    encoder = Encoder("uni2-h", load=False, arguments=SMALL).eval()
    with_scales(encoder.net.vit)
    return encoder


def test_a_change_reaches_no_further_than_a_window(small):
    image = torch.rand(1, 3, 704, 704, generator=torch.Generator().manual_seed(2))
    changed = image.clone()
    changed[..., 352, 352] += 0.5
    with torch.no_grad():
        a, b = small(image), small(changed)
    for before, after, stride in zip(a, b, small.strides, strict=True):
        rows, _ = torch.nonzero((before != after)[0].any(0), as_tuple=True)
        assert len(rows)
        assert (rows * stride).min() >= 352 - 256
        assert (rows * stride + stride).max() <= 352 + 256


def test_between_windows_there_is_no_step(small):
    """Over a uniform image the features of one window are repeated, whatever its place; blending changes nothing."""
    image = torch.rand(1, 3, 704, 704, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = small(image)[-1][0]
        across = (maps[:, :, 1:] - maps[:, :, :-1]).abs().mean((0, 1))
    # Where windows begin or end, neighbours differ no more than elsewhere.
    ends = {e for s in windows(44, 16) for e in (s - 1, s + 15)}
    at_ends = [v for i, v in enumerate(across.tolist()) if i in ends]
    elsewhere = [v for i, v in enumerate(across.tolist()) if i not in ends]
    assert max(at_ends) <= 1.2 * max(elsewhere)


def test_a_batch_is_encoded_like_its_images(small):
    images = torch.rand(2, 3, 384, 320, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        both, one = small(images), small(images[1:])
    for a, b in zip(both, one, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=0, atol=1e-5)
        assert a.shape[0] == 2


def test_the_page_shows_the_table():
    rows = [
        re.split(r"\s*\|\s*", line.strip("| \n")) for line in PAGE.read_text().splitlines() if "huggingface.co" in line
    ]
    shown = {row[0].strip("`"): row[1:] for row in rows if len(row) > 6}
    assert list(shown) == [e.name for e in KNOWN]
    for e in KNOWN:
        publisher, page, licence, gate, size, made, normalised, token, blocks, mpp, unverified = shown[e.name]
        assert publisher == e.publisher
        assert f"(https://huggingface.co/{e.repository})" in page
        assert page.startswith(f"[{e.file}]")
        assert licence == e.licence
        assert gate == ("yes" if e.gated else "no")
        assert size == f"{e.parameters:g} M"
        assert made == describe(e)
        assert normalised == "; ".join(" ".join(f"{v:.3f}" for v in part) for part in e.normalisation)
        assert token == (str(e.patch) if e.patch else "-")
        assert blocks == " ".join(map(str, e.blocks))
        assert mpp == (" ".join(f"{v:g}" for v in e.mpp) or "photographs")
        assert unverified == (", ".join(e.unverified) or "-")


def describe(entry):
    arguments = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in entry.arguments.items()]
    return " ".join([f"`{entry.network}`", *arguments])


def test_a_name_may_be_that_of_the_repository():
    assert known("hf-hub:paige-ai/Virchow2") is known("virchow2")
    assert known("hf-hub:somebody/else") is known("vit_base_patch16_224") is None


def test_cost_and_licence_of_a_file_are_told_without_a_network():
    info = encoder_info("uni@/models/uni.bin")
    assert info.licence == "cc-by-nc-nd-4.0"
    assert info.megabytes == pytest.approx(1213, abs=1)
    assert info.gflop > 50 * encoder_info("tf_efficientnet_lite0").gflop
    assert re.fullmatch(
        r"[\d,]+ GFLOP per megapixel, about [\d,]+ s on this computer's processor: .*", info.cost("cpu")
    )
