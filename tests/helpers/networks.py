"""Real networks with arbitrary weights, and models of them."""

from __future__ import annotations

import torch

from napari_sparseseg.config import DEFAULT_ENCODER, ClassDef, TrainConfig, make_classes
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps, InputScale
from napari_sparseseg.learning.head import Head
from napari_sparseseg.learning.model import Model
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet

CLASSES = (ClassDef(3, "gland", "#e69f00"), ClassDef(200, "stroma", "#56b4e9"))


def two_speed(context=3, share=0.5, channels=3):
    """A network whose head and decoder both matter, with random weights of a sensible size."""
    torch.manual_seed(0)
    maps = FeatureMaps(Encoder(channels=channels), context)
    head = Head(maps.channels, 16, 2)
    decoder = Decoder(maps.channels, maps.strides, (16, 12, 8, 8), 2)
    torch.nn.init.normal_(decoder.scores.weight)
    return TwoSpeedNet(maps, head, decoder, share)


def plain():
    torch.manual_seed(0)
    net = PlainUNet(3, 2, width=4)
    torch.nn.init.normal_(net.scores.weight, std=20)
    return net


def model_of(net, channels=("R", "G", "B")):
    metadata = ModelMetadata(CLASSES, 1.0, DEFAULT_ENCODER, channels=channels, config=TrainConfig(seed=5), step=17)
    return Model(metadata, net, InputScale((0.0,) * len(channels), (255.0,) * len(channels)))


def network(classes: int = 3) -> Model:
    """The pretrained encoder with an unfitted head: arbitrary labels, but with all of a network's arithmetic."""
    torch.manual_seed(0)
    features = FeatureMaps(Encoder("tf_efficientnet_lite0", 3))
    net = TwoSpeedNet(features, Head(features.channels, 16, classes))
    return Model(
        ModelMetadata(make_classes("abcde"[:classes]), None, "tf_efficientnet_lite0"), net, InputScale.for_rgb()
    )
