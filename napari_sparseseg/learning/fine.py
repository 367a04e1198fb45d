"""What the trainer trains: the U-Net decoder, on frozen encoder maps first and end to end later, or the plain U-Net.

The encoder is frozen at first. From random weights, a decoder would spoil it before it is of use; and frozen maps let
head and decoder share one pass of the encoder in prediction. The decoder begins at the head's features, not at its
answer: as a correction that is added to the head's scores and begins at 0 it had 0.864 and 0.838 mean Dice after 40 CPU
seconds, begun at random and mixed with the head 0.881 and 0.870 (EBHI-Seg gland / background, seeds 3 and 4,
2026-11-26), for the head has all strokes right already and leaves nothing to learn; and it has seen what is held out.
Once the decoder has settled it gets its own copy of the encoder, trained at a small rate: the head goes on with
the frozen one, whose features it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_sparseseg.learning.feature_cache import labelled_features
from napari_sparseseg.learning.trainer import upsample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.features import FeatureMaps
    from napari_sparseseg.learning.network import Decoder, PlainUNet

CHANNEL_DROPOUT = 0.2
"""Share of feature channels blanked per patch: no single one may decide."""
AUGMENTED_ROWS = 64
"""Per patch and class: features of augmented patches that the instant head learns from too."""
ENCODER_RATE = 0.05
"""Learning rate of the decoder's own encoder, as a share of the decoder's."""
MOST_AUGMENTED = 512
"""Augmented patches to keep; the oldest give way."""


class DecoderTask:
    """The decoder on frozen maps; keeps features of the augmented patches for the head.

    Parameters
    ----------
    features
        The maps; not trained.
    decoder
        Trained in place, with its own encoder where it has one.
    learning_rate
        Full rate of the decoder.
    """

    def __init__(self, features: FeatureMaps, decoder: Decoder, learning_rate: float) -> None:
        self.features = features
        self.weights: Decoder = decoder
        self.learning_rate = 2 * learning_rate
        self.rows: list[LabelledFeatures] = []
        self._rng = np.random.default_rng(0)

    @property
    def pixels_at_once(self) -> int:
        """See `trainer.Trainable`: four patches of 192 px, end to end one."""
        return 150_000 if self.weights.tuned is None else 40_000

    def logits(self, image: torch.Tensor, labels: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
        """See `trainer.Trainable`."""
        tuned = self.weights.tuned
        # With an encoder of its own the frozen maps are for the head alone, and only until it has enough.
        if tuned is None or len(self.rows) < MOST_AUGMENTED:
            with torch.no_grad():
                maps = self.features(image)
            self._remember(maps, labels)
        if tuned is not None:
            maps = tuned(image)
        keep = 1 - CHANNEL_DROPOUT
        masks = [torch.empty(*m.shape[:2], 1, 1).bernoulli_(keep, generator=generator) / keep for m in maps]
        return upsample(self.weights(maps, [mask.to(image.device) for mask in masks]), image)

    def rate_of(self, name: str) -> float:
        """See `trainer.Trainable`."""
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
        """See `trainer.Trainable`."""
        return 1.0

    def logits(self, image: torch.Tensor, labels: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
        """See `trainer.Trainable`."""
        scores: torch.Tensor = self.weights.logits(image)
        return scores
