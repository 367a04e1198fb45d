"""The training loop, one short piece at a time: draw, augment, forward, balanced loss, backward, update, average.

A batch is processed in parts that take well under a second on a laptop, so that painting and live prediction get the
processor in between. The balancing counts are those of the whole batch, so the gradients are too. The size of a part
follows from the task and the size of the patches, never from the time that one took: a seed gives one result on any
machine.

The encoder is frozen at first: from random weights a decoder would spoil it before it is of use, and frozen maps let
head and decoder share one pass of the encoder in prediction. Later the decoder gets its own copy of the encoder,
trained at a small rate, while the head goes on with the frozen one, whose features are cached. See D1 and D2.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from napari_sparseseg.balancing import BatchTotals, balanced_cross_entropy, count_labels
from napari_sparseseg.config import MAX_CLASS_ID, class_ids
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning.augment import Augmentation, augment
from napari_sparseseg.learning.distributed import ranks
from napari_sparseseg.learning.feature_cache import labelled_features
from napari_sparseseg.learning.network import Decoder, PlainUNet
from napari_sparseseg.learning.torch_runtime import autocast_dtype, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.features import FeatureMaps, InputScale
    from napari_sparseseg.learning.sampling import Batch

logger = logging.getLogger(__name__)

WARM_UP = 20
"""Steps until the full learning rate."""
AVERAGE = 0.98
"""Decay of the averaged weights, reached after some dozens of steps."""
PSEUDO_WEIGHT = 2.0
"""Weight of the pseudo-labels' loss beside the balanced loss of the labels: cross-entropy averaged over all pixels of
the batch, so that few pseudo-labels count little."""
AUGMENTED_ROWS = 64
"""Per patch and class: pixels of augmented patches that the instant head learns from too."""
ENCODER_RATE = 0.05
"""Learning rate of the decoder's own encoder, as a share of the decoder's."""
MOST_AUGMENTED = 512
"""Augmented patches whose features are retained; the oldest give way."""
_CLIP = 1.0
_WEIGHT_DECAY = 0.02
_MOST_RESTARTS = 5


class DecoderTask:
    """The decoder on frozen maps; collects features of the augmented patches for the head.

    Parameters
    ----------
    features
        Gives the maps; not trained.
    decoder
        Trained in place, with its own encoder where it has one.
    learning_rate
        Full rate of the decoder.
    channel_dropout
        Share of feature channels blanked per patch, so that no single one decides.

    Attributes
    ----------
    rows : list of LabelledFeatures
        Of the latest `MOST_AUGMENTED` augmented patches.
    """

    def __init__(
        self, features: FeatureMaps, decoder: Decoder, learning_rate: float, channel_dropout: float = 0.2
    ) -> None:
        self.features, self._dropout = features, channel_dropout
        self.weights: Decoder = decoder
        self.learning_rate = 2 * learning_rate
        self.rows: list[LabelledFeatures] = []
        self._rng = np.random.default_rng(0)

    @property
    def pixels_at_once(self) -> int:
        """Pixels of a part of a batch on a CPU, about 0.2 s on one core: four patches of 192 px, end to end one."""
        return 150_000 if self.weights.tuned is None else 40_000

    def logits(self, image: torch.Tensor, labels: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
        """Scores (B, K, H, W) of an image in training mode; `labels` are class ids."""
        tuned = self.weights.tuned
        # With an encoder of its own the frozen maps are for the head alone, and only until it has enough.
        if tuned is None or len(self.rows) < MOST_AUGMENTED:
            with torch.no_grad():
                maps = self.features(image)
            self._remember(maps, labels)
        if tuned is not None:
            maps = tuned(image)
        keep = 1 - self._dropout
        masks = [torch.empty(*m.shape[:2], 1, 1).bernoulli_(keep, generator=generator) / keep for m in maps]
        return upsample(self.weights(maps, [mask.to(image.device) for mask in masks]), image)

    def rate_of(self, name: str) -> float:
        """Share of the full rate that the parameter of this name is trained at."""
        return ENCODER_RATE if name.startswith("tuned.") else 1.0

    def _remember(self, maps: Sequence[torch.Tensor], labels: NDArray[np.uint8]) -> None:
        for k, patch in enumerate(labels):
            if patch.any():
                strides = self.features.strides
                self.rows.append(labelled_features(maps, strides, patch, self._rng, patch=k, most=AUGMENTED_ROWS))
        del self.rows[:-MOST_AUGMENTED]


class ScratchTask:
    """The plain U-Net from random weights, trained end to end as in the paper."""

    pixels_at_once = 40_000

    def __init__(self, net: PlainUNet, learning_rate: float) -> None:
        self.weights: PlainUNet = net.train()
        self.learning_rate = learning_rate

    def rate_of(self, name: str) -> float:
        """See `DecoderTask`."""
        return 1.0

    def logits(self, image: torch.Tensor, labels: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
        """See `DecoderTask`."""
        scores: torch.Tensor = self.weights.logits(image)
        return scores


class Trainer:
    """Trains one network on batches, with warm-up, clipping, averaged weights and recovery from NaN.

    Parameters
    ----------
    task
        The network to train, on its device.
    ids
        Class ids in channel order.
    config
        Batch size, balancing, seed.
    scale
        Of the input.
    augmentation
        Random changes of the patches.
    part
        Patches processed at once; None: as many as the task and the device suggest.

    Attributes
    ----------
    averaged : Module
        The averaged weights, in eval mode.
    steps : int
        Completed steps.
    message : str
        For the user: what went wrong and was overcome in the last `work`; else empty.
    """

    def __init__(
        self,
        task: DecoderTask | ScratchTask,
        ids: Sequence[int],
        config: TrainConfig,
        scale: InputScale,
        *,
        augmentation: Augmentation | None = None,
        part: int | None = None,
    ) -> None:
        self.task, self.config, self.scale = task, config, scale
        self.device = next(task.weights.parameters()).device
        self._reduce = ranks()
        self._reduce.share_weights(task.weights)
        averaged: Decoder | PlainUNet = copy.deepcopy(task.weights)
        self.averaged = averaged.requires_grad_(False).eval()
        self.steps = 0
        self.message = ""
        self._rate, self._restarts = task.learning_rate, 0
        self._optimizer = self._new_optimizer()
        self._augmentation = augmentation or Augmentation()
        self._rng = np.random.default_rng(config.seed + self._reduce.rank)
        self._generator = torch.Generator().manual_seed(config.seed + self._reduce.rank)
        self._lookup = np.zeros(MAX_CLASS_ID + 1, np.uint8)
        self._lookup[list(ids)] = np.arange(1, len(ids) + 1)
        self._part = part or config.batch_size
        if part is None and self.device.type == "cpu":
            self._part = min(self._part, max(1, task.pixels_at_once // config.patch_px**2))
        self._batch: Batch | None = None
        self._pseudo: torch.Tensor | None = None
        self._done = 0
        self._loss = 0.0

    @property
    def learning_rate(self) -> float:
        """Of the last step, before a parameter's own share of it."""
        return self._rate * min(1.0, self.steps / WARM_UP)

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether the last batch had any."""
        return self._pseudo is not None

    def work(self, draw: Callable[[int], Batch]) -> float | None:
        """Process the next part of a batch; the balanced loss when that completes a step, else None.

        Raises
        ------
        TrainingError
            When one patch does not fit into memory, or the loss stays NaN.
        """
        self.message = ""
        if self._batch is None:
            # Patches are drawn with a margin so that turned ones have few mirrored corners; none of it is labelled.
            drawn = draw(self.config.batch_size)
            self._begin(augment(drawn, self._rng, self._augmentation, size=self.config.patch_px))
            if self._reduce.ended:
                self.drop_batch()
                return None
        try:
            self._accumulate()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._smaller_part(error)
            return None
        if self._batch is not None and self._done < len(self._batch.labels):
            return None
        return self._update()

    def drop_batch(self) -> None:
        """Discard the batch in progress: its labels are out of date."""
        self._batch = None
        self._optimizer.zero_grad(set_to_none=True)

    def _begin(self, batch: Batch, totals: BatchTotals | None = None) -> None:
        self._batch, self._done, self._loss = batch, 0, 0.0
        self._channels = torch.from_numpy(self._lookup[batch.labels])
        self._pseudo = None if batch.pseudo is None else torch.from_numpy(self._lookup[batch.pseudo])
        self._totals = totals or self._reduce.begin(BatchTotals.of(count_labels(self._channels)), self.device)
        self._optimizer.zero_grad(set_to_none=True)

    def _accumulate(self) -> None:
        """Forward and backward of the next patches; losses and gradients of the parts add up to the batch's."""
        if self._batch is None:
            return
        part = slice(self._done, self._done + self._part)
        image = self.scale.unit(self._batch.pixels[part]).to(self.device).contiguous(memory_format=torch.channels_last)
        dtype = autocast_dtype(self.device, training=True)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.task.logits(image, self._batch.labels[part], self._generator)
        loss = balanced_cross_entropy(
            logits,
            self._channels[part],
            self.config.balancing,
            min_pixels=self.config.min_pixels,
            totals=self._totals,
        )
        if self._pseudo is not None:
            loss = loss + self._pseudo_loss(logits, self._pseudo[part])
        torch.autograd.backward(loss)
        self._loss += float(loss.detach())
        self._done += len(image)

    def _pseudo_loss(self, logits: torch.Tensor, pseudo: torch.Tensor) -> torch.Tensor:
        """Share of these patches in the pseudo-labels' loss over the joint batch of all ranks."""
        count = pseudo[0].numel() * self.config.batch_size * self._reduce.world
        target = pseudo.to(self.device, torch.int64) - 1
        summed = F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum")
        return summed * (PSEUDO_WEIGHT / count)

    def _update(self) -> float:
        self._batch = None
        parameters = [p for p in self.task.weights.parameters() if p.requires_grad]
        self._loss = self._reduce.sum_step(parameters, self._loss)
        norm = float(nn.utils.clip_grad_norm_(parameters, _CLIP))
        if not (math.isfinite(self._loss) and math.isfinite(norm)):
            self._go_back()
            return self._loss
        self.steps += 1
        if self.steps % WARM_UP == 0:
            self._restarts = 0
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * group["share"] * min(1.0, self.steps / WARM_UP)
        self._optimizer.step()
        self._average()
        return self._loss

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.averaged.parameters(), self.task.weights.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, buffer in zip(self.averaged.buffers(), self.task.weights.buffers(), strict=True):
            kept.copy_(buffer)

    def _go_back(self) -> None:
        """After NaN or infinity: the averaged weights, half the learning rate, fresh moments."""
        self._restarts += 1
        if self._restarts > _MOST_RESTARTS:
            raise TrainingError(
                f"the loss became NaN {self._restarts} times in a row; lower the learning rate "
                f"({self.config.learning_rate}) or look for broken pixels in the slides."
            )
        self.task.weights.load_state_dict(self.averaged.state_dict())
        self._rate /= 2
        self._optimizer = self._new_optimizer()
        self.message = f"the loss was not a number; went back to the last good weights, learning rate {self._rate:.2g}."
        logger.warning(self.message)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        by_share: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.task.weights.named_parameters():
            by_share.setdefault(self.task.rate_of(name), []).append(parameter)
        groups = [{"params": p, "lr": self._rate * share, "share": share} for share, p in by_share.items()]
        return torch.optim.AdamW(groups, self._rate, weight_decay=_WEIGHT_DECAY)

    def _smaller_part(self, error: Exception) -> None:
        """After out-of-memory: restart the batch in smaller parts, with the same gradients in the end."""
        if self._part == 1:
            raise TrainingError(
                f"{self.device} has not enough memory for one patch of {self.config.patch_px} px; choose smaller "
                "patches, or device cpu."
            ) from error
        self._part = max(1, self._part // 2)
        if self._batch is not None:
            self._begin(self._batch, self._totals)  # the other ranks do not restart
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.message = f"memory ran out; now {self._part} of {self.config.batch_size} patches at a time."
        logger.warning(self.message)


def upsample(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Scores at the size of the image."""
    return F.interpolate(scores.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)


def new_trainer(
    fine: Decoder | PlainUNet,
    features: FeatureMaps | None,
    classes: Sequence[ClassDef],
    config: TrainConfig,
    scale: InputScale,
    device: torch.device,
) -> Trainer:
    """A trainer that continues from a copy of the weights given; a decoder needs `features`."""
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
    trainer: Trainer, features: FeatureMaps, classes: Sequence[ClassDef], config: TrainConfig, device: torch.device
) -> Trainer:
    """A trainer that continues end to end: the averaged decoder gets a copy of the encoder, its statistics frozen."""
    decoder, task = copy.deepcopy(trainer.averaged), trainer.task
    if isinstance(decoder, Decoder):
        decoder.tuned = copy.deepcopy(features).eval()
    later = new_trainer(decoder, features, classes, config, trainer.scale, device)
    if isinstance(task, DecoderTask) and isinstance(later.task, DecoderTask):
        later.task.rows = task.rows
    return later
