"""How a run begins: features, networks and trainer from settings, and the recipe of what comes out."""

from __future__ import annotations

import copy
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from napari_sparseseg.config import Recipe, class_ids
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps
from napari_sparseseg.learning.fine import DecoderTask, ScratchTask
from napari_sparseseg.learning.network import Decoder, PlainUNet
from napari_sparseseg.learning.sampling import PatchSampler
from napari_sparseseg.learning.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch import nn

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.bank import Rows
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.sources import Source, Unit

CONTEXT = 3
DECODER_WIDTHS = (64, 48, 32, 24)
PATCH_MARGIN = 8
"""A patch is read larger by 1 / this of its side all around, to be turned without empty corners."""


def new_features(config: TrainConfig, channels: int, device: torch.device) -> FeatureMaps:
    """Frozen maps of the encoder that the settings name."""
    features = FeatureMaps(Encoder(config.encoder, channels), CONTEXT).requires_grad_(False).eval()
    return features.to(memory_format=torch.channels_last).to(device)


def new_unet(config: TrainConfig, channels: int, classes: int, device: torch.device) -> PlainUNet:
    """The plain U-Net with random weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PlainUNet(channels, classes).to(device)


def new_decoder(config: TrainConfig, features: FeatureMaps, classes: int, rows: Sequence[Rows]) -> Decoder:
    """A decoder with random weights that depend on the seed only, for maps that look like `rows`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = Decoder(features.channels, features.strides, DECODER_WIDTHS, classes)
    decoder.standardise(torch.cat([r.features for r in rows]))
    return decoder


def new_trainer(
    fine: Decoder | PlainUNet,
    features: FeatureMaps | None,
    classes: Sequence[ClassDef],
    config: TrainConfig,
    scale: InputScale,
    device: torch.device,
) -> Trainer:
    """A trainer that goes on from a copy of the weights given; `features` are needed for a decoder."""
    net = copy.deepcopy(fine).requires_grad_(True).to(device)
    task: DecoderTask | ScratchTask
    if isinstance(net, Decoder) and features is not None:
        task = DecoderTask(features, net, config.learning_rate)
    elif isinstance(net, PlainUNet):
        task = ScratchTask(net, config.learning_rate)
    else:
        raise TypeError("a decoder cannot be trained without features")
    return Trainer(task, class_ids(classes), config, scale)


def new_sampler(
    sources: Sequence[Source], config: TrainConfig, number: int, exclude: Mapping[int, Sequence[Unit]]
) -> PatchSampler:
    """The `number`-th sampler of a run: another seed each time, or every stroke would bring the same patches again."""
    margin = config.patch_px // PATCH_MARGIN
    return PatchSampler(sources, config, config.seed + 7919 * number, exclude=exclude, margin=margin)


def too_few_classes(classes: Sequence[ClassDef], sources: Sequence[Source], remembered: Sequence[Rows]) -> str:
    """What is missing for two classes to be told apart; empty when nothing is."""
    drawn = {c for s in sources for c, n in s.labels.counts().items() if n}
    known = drawn | {c for rows in remembered for c in set(rows.labels.tolist())}
    found = [c.name for c in classes if c.id in known]
    if drawn and len(found) >= 2:
        return ""
    return f"strokes of at least two classes are needed to learn; labelled so far: {', '.join(found) or 'none'}."


def fine_part(net: nn.Module) -> Decoder | PlainUNet:
    """The averaged weights of a trainer as what they are."""
    if not isinstance(net, (Decoder, PlainUNet)):
        raise TypeError(f"{type(net).__name__} is not trained here")
    return net


def recipe_of(
    sources: Sequence[Source], classes: Sequence[ClassDef], config: TrainConfig, metrics: dict[str, Any], step: int
) -> Recipe:
    """What travels with the weights."""
    first = sources[0]
    mpp = first.slide.mpp
    described = tuple(
        {
            "name": PurePath(s.slide.path).name,
            "fingerprint": s.slide.fingerprint,
            "annotations": s.labels.version,
            "strokes": len(s.labels.strokes),
        }
        for s in sources
    )
    return Recipe(
        classes=tuple(classes),
        mpp=None if mpp is None else mpp[0] * first.frame.downsample[0],
        encoder=config.encoder,
        channels=tuple(first.slide.channels),
        dtype=str(first.slide.dtype),
        config=config,
        metrics=metrics,
        sources=described,
        step=step,
    )
