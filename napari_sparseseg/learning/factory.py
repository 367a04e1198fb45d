"""How a run begins: features, networks and trainer from settings, and the metadata of the model."""

from __future__ import annotations

import copy
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning.distributed import ranks
from napari_sparseseg.learning.encoders import Encoder
from napari_sparseseg.learning.features import FeatureMaps
from napari_sparseseg.learning.fine import DecoderTask, ScratchTask
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet
from napari_sparseseg.learning.sampling import PatchSampler, ReadAhead
from napari_sparseseg.learning.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch import nn

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.feature_cache import FeatureCache, LabelledFeatures
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.holdout import HeldOut
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.sampling import Batch
    from napari_sparseseg.learning.sources import Source

CONTEXT = 3
"""Cells of the coarsest map that are averaged as its context.

Instant head, EBHI-Seg gland against background, mean Dice on half of the test cases of seeds 0 and 1, 2026-11-23:
3 cells 0.854 and 0.858; 7 instead 0.850 and 0.858; 3 and 7 0.852 and 0.863; with local spread of stride 16 0.855 and
0.853; without the map of stride 2 0.858 and 0.856; with local mean and spread of the stains 0.863 and 0.865, but 0.416
instead of 0.423 on seven classes (seed 0).
"""
DECODER_WIDTHS = (64, 48, 32, 24)
STATISTICS = 50_000
"""Rows that the spread of the features is measured on, at least."""
PATCH_MARGIN = 8
"""A patch is read larger by 1 / this of its side all around, to be turned without empty corners."""


def new_features(config: TrainConfig, scale: InputScale, device: torch.device) -> FeatureMaps:
    """Frozen maps of the encoder that the settings name."""
    features = FeatureMaps(Encoder(config.encoder, len(scale.low)), CONTEXT).requires_grad_(False).eval()
    return features.to(memory_format=torch.channels_last).to(device)


def new_unet(config: TrainConfig, channels: int, classes: int, device: torch.device) -> PlainUNet:
    """The plain U-Net with random weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PlainUNet(channels, classes).to(device)


def new_decoder(config: TrainConfig, features: FeatureMaps, classes: int, rows: Sequence[LabelledFeatures]) -> Decoder:
    """A decoder with random weights that depend on the seed only, for maps that look like `rows`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = Decoder(features.channels, features.strides, DECODER_WIDTHS[: len(set(features.strides))], classes)
    step = 1 + sum(len(r.labels) for r in rows) // STATISTICS  # of very many, some are as good and no copy of all
    decoder.standardise(torch.cat([r.features[::step] for r in rows]))
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


def unfreeze(
    trainer: Trainer, bank: FeatureCache, classes: Sequence[ClassDef], config: TrainConfig, device: torch.device
) -> Trainer:
    """A trainer that goes on end to end: the averaged decoder gets its own encoder, with its statistics as they are."""
    decoder, task = copy.deepcopy(fine_part(trainer.averaged)), trainer.task
    if isinstance(decoder, Decoder):
        decoder.tuned = copy.deepcopy(bank.features).eval()
    later = new_trainer(decoder, bank.features, classes, config, bank.scale, device)
    if isinstance(task, DecoderTask) and isinstance(later.task, DecoderTask):
        later.task.rows = task.rows
    return later


class PatchStream:
    """Batches of training patches, from a new sampler whenever labels or what is held out have changed.

    Parameters
    ----------
    config
        Of the run.
    held
        What it holds out when the sampler is made is kept out.
    """

    def __init__(self, config: TrainConfig, held: HeldOut) -> None:
        self._config, self._held = config, held
        self._sources: tuple[Source, ...] = ()
        self._ahead: ReadAhead | None = None
        self._made = 0

    def restart(self, sources: Sequence[Source]) -> None:
        """Draw from these from now on."""
        self._sources = tuple(sources)
        self.rest()

    def rest(self) -> None:
        """Keep no thread and no batch until the next draw."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def draw(self, n: int) -> Batch:
        """The next `n` patches; see `PatchSampler.draw`."""
        if self._ahead is None:
            # Another seed each time, or every stroke would bring the same patches again.
            self._made += 1
            seed = self._config.seed + 7919 * self._made + 104_729 * ranks().rank
            margin = self._config.patch_px // PATCH_MARGIN
            exclude = self._held.exclude
            self._ahead = ReadAhead(PatchSampler(self._sources, self._config, seed, exclude=exclude, margin=margin))
        return self._ahead.draw(n)


def too_few_classes(
    classes: Sequence[ClassDef], sources: Sequence[Source], remembered: Sequence[LabelledFeatures]
) -> str:
    """What is missing for two classes to be told apart; empty when nothing is."""
    drawn = {c for s in sources for c, n in s.labels.counts().items() if n}
    known = drawn | {c for rows in remembered for c in set(rows.labels.tolist())}
    found = [c.name for c in classes if c.id in known]
    if drawn and len(found) >= 2:
        return ""
    return f"strokes of at least two classes are needed to learn; labelled so far: {', '.join(found) or 'none'}."


def other_network(model: Model, config: TrainConfig) -> str:
    """Why training by these settings cannot go on from a model; empty where it can."""
    scratch = config.architecture == "scratch"
    asked = "the plain U-Net" if scratch else f"encoder {config.encoder}"
    theirs = "the plain U-Net" if isinstance(model.net, PlainUNet) else f"encoder {model.metadata.encoder}"
    if asked == theirs:
        return ""
    return f"the model before had {theirs}; learning begins anew with {asked}."


def network_of(
    features: FeatureMaps | None, head: Head | None, fine: Decoder | PlainUNet | None, share: float
) -> TwoSpeedNet | PlainUNet | None:
    """What is served of these parts; None while there is too little of them."""
    if isinstance(fine, PlainUNet):
        return fine
    return None if features is None or head is None else TwoSpeedNet(features, head, fine, share)


def fine_part(net: nn.Module) -> Decoder | PlainUNet:
    """The averaged weights of a trainer as what they are."""
    if not isinstance(net, (Decoder, PlainUNet)):
        raise TypeError(f"{type(net).__name__} is not trained here")
    return net


def metadata_of(
    sources: Sequence[Source], classes: Sequence[ClassDef], config: TrainConfig, metrics: dict[str, Any], step: int
) -> ModelMetadata:
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
    return ModelMetadata(
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
