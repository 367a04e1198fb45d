"""A network as a few plain values in the recipe, and back, offline.

A file is passed between people, and a few bytes in it can describe a network of terabytes. It is first built without
memory, on torch's ``meta`` device, and compared with the tensors that the file holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps
from napari_sparseseg.learning.head import Head
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_sparseseg.config import Recipe

_MOST_WIDTH = 1024
_MOST_DEPTH = 8
_MOST_DERIVED = 64 << 20
"""Bytes of what a network computes for itself and no file holds, as tables of relative positions."""


def describe(net: TwoSpeedNet | PlainUNet) -> dict[str, Any]:
    """What `rebuild` needs beside classes and channels."""
    if isinstance(net, PlainUNet):
        return {"kind": "scratch", "norm": "channels", "width": net.scores.in_channels, "depth": net.depth}
    widths = [] if net.decoder is None else net.decoder.widths
    return {
        "kind": "pretrained",
        "architecture": net.features.encoder.architecture,
        "arguments": net.features.encoder.arguments,
        "context": net.features.context,
        "hidden": net.head.scores.in_channels,
        "decoder": widths,
        "tuned": net.decoder is not None and net.decoder.tuned is not None,
        "share": net.share,
    }


def rebuild(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> TwoSpeedNet | PlainUNet:
    """The network of a recipe with random weights, in eval mode.

    Parameters
    ----------
    recipe
        Of the file.
    shapes
        Of the tensors in the file that are the network's: it is built only where it has just these.

    Raises
    ------
    ModelError
        For values that no network of ours has.
    ValueError
        Where the shapes are others.
    Exception
        Whatever a constructor raises for missing or wrong values.
    """
    with torch.device("meta"):
        plan = _build(recipe)
    wanted = {name: tuple(value.shape) for name, value in plan.state_dict().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise ValueError(f"{name} is {shapes.get(name, 'missing')}, not {wanted.get(name, 'part of the network')}")
    derived = sum(b.numel() * b.element_size() for name, b in plan.named_buffers() if name not in wanted)
    if derived > _MOST_DERIVED:
        raise ValueError(f"the network takes {derived} bytes beside its weights")
    return _build(recipe).eval()


def _build(recipe: Recipe) -> TwoSpeedNet | PlainUNet:
    net = dict(recipe.extra["net"])
    classes, channels = len(recipe.classes), len(recipe.channels)
    if net["kind"] == "scratch":
        if net.get("norm") != "channels":
            raise ModelError("the model is a plain U-Net with batch normalisation, of an older version; train it anew.")
        return PlainUNet(channels, classes, _bounded(net, "width"), _bounded(net, "depth", _MOST_DEPTH))
    if net["kind"] != "pretrained":
        raise ModelError(f"the model is of kind {net['kind']!r}, which this version does not know; update the program.")
    # By architecture, never by address: a model file must not make this program download anything.
    architecture = str(net["architecture"]).partition("@")[0]
    if ":" in architecture or "/" in architecture:
        raise ModelError(f"the model names the encoder {architecture!r}, which is an address and not a timm name.")
    arguments = dict(net.get("arguments", {}))
    context = _bounded(net, "context", 15)
    features = FeatureMaps(Encoder(architecture, channels, load=False, arguments=arguments), context)
    head = Head(features.channels, _bounded(net, "hidden"), classes)
    widths = [_bounded({"decoder": w}, "decoder") for w in net["decoder"]]
    decoder = Decoder(features.channels, features.strides, widths, classes) if widths else None
    if decoder is not None and net.get("tuned"):
        decoder.tuned = FeatureMaps(Encoder(architecture, channels, load=False, arguments=arguments), context)
    share = float(net["share"])
    if not 0 <= share <= 1:
        raise ModelError(f"the model's decoder share {share} is not in 0..1; the file is damaged.")
    return TwoSpeedNet(features, head, decoder, share)


def _bounded(values: dict[str, Any], name: str, most: int = _MOST_WIDTH) -> int:
    value = int(values[name])
    if not 1 <= value <= most:
        raise ModelError(f"the model's {name} {value} is not in 1..{most}; the file is damaged.")
    return value
