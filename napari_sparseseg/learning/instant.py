"""The instant half of the learner: what is labelled, its features, and the head that is fitted to them in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning import replay as memory
from napari_sparseseg.learning.factory import new_features
from napari_sparseseg.learning.feature_cache import FeatureCache, join
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.head import fit_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.features import FeatureMaps
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.sources import Source


class InstantLearner:
    """Sources, bank and head; `Learner` adds the fine part and says what is served.

    Parameters
    ----------
    config, classes
        Settings of the run; class table, in the order of channels.
    device
        Where torch computes.
    """

    def __init__(self, config: TrainConfig, classes: tuple[ClassDef, ...], device: torch.device) -> None:
        self.config, self.classes, self.device = config, classes, device
        self._sources: tuple[Source, ...] = ()
        self._scale: InputScale | None = None
        self._features: FeatureMaps | None = None
        self._bank: FeatureCache | None = None
        self._head: Head | None = None
        self._rows: list[LabelledFeatures] = []
        self._memory: tuple[LabelledFeatures, ...] = ()

    @property
    def pending(self) -> int:
        """Labelled places that the instant head has not seen yet."""
        return self._bank.pending if self._bank is not None else 0

    @property
    def _training(self) -> list[Source]:
        return [s for s in self._sources if s.role == "train"]

    @property
    def _open(self) -> set[str]:
        """Slides whose labels take the place of what is remembered of them, as soon as all were looked at."""
        return set() if self.pending else {s.slide.fingerprint for s in self._sources}

    @property
    def _remembered(self) -> tuple[LabelledFeatures, ...]:
        """Rows of slides that are not open."""
        return memory.without_slides(self._memory, self._open)

    def _ensure_bank(self) -> FeatureCache:
        if self._bank is None:
            scale = self._scale or InputScale.of(self._training)
            self._features = self._features or new_features(self.config, scale, self.device)
            self._bank = FeatureCache(self._features, scale)
            self._bank.set_sources(self._training)
        return self._bank

    def _fit_head(self, augmented: Sequence[LabelledFeatures]) -> Head:
        bank, ids = self._ensure_bank(), class_ids(self.classes)
        self._rows = bank.rows()
        rows = [*self._rows, *self._remembered, *augmented]
        samples = join(rows, ids, self.config)
        return fit_head(samples, bank.features.channels, len(ids), seed=self.config.seed, device=self.device)
