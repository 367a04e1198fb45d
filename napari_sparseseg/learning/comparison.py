"""Instant head against U-Net decoder on held-out strokes, in pieces short enough to be done between other work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning.bank import CELL, MARGIN, FeatureBank, Rows, join
from napari_sparseseg.learning.head import fit_head
from napari_sparseseg.learning.validation import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.network import Decoder
    from napari_sparseseg.learning.sources import Source, Unit
    from napari_sparseseg.learning.validation import HeldOut, Window

SHARES = (0.0, 0.5, 0.8)
"""Shares of the decoder that are compared. Never 1: the head has seen the newest stroke, the decoder may not have."""
CLEARLY = 0.005
"""Balanced Dice by which a larger share must win: it is dearer to compute and slower to follow a stroke."""


class Comparison:
    """One comparison; call `advance` until it says that it is done.

    Parameters
    ----------
    bank
        Features of what is labelled.
    held
        What is held out; the decoder must have been trained without it.
    sources
        As given to `held`.
    decoder
        Averaged weights; belongs to the comparison.
    settings
        Class table and config.
    extra
        Further rows for the head: augmented patches, remembered slides.

    Attributes
    ----------
    best_share : float
        Share of the decoder that scored best.
    metrics : dict
        Scores of that share, with the balanced Dice of every share as ``shares``.
    """

    def __init__(
        self,
        bank: FeatureBank,
        held: HeldOut,
        sources: Sequence[Source],
        decoder: Decoder,
        settings: tuple[tuple[ClassDef, ...], TrainConfig],
        extra: Sequence[Rows] = (),
    ) -> None:
        self._bank, self._held, self._sources, self.decoder = bank, held, tuple(sources), decoder
        self._classes, self._config = settings
        self._extra = tuple(extra)
        self._head: Head | None = None
        self._windows: list[Window] = list(held.windows())
        self._scorers = {share: Scorer(self._classes) for share in SHARES}
        self.best_share = 0.0
        self.metrics: dict[str, Any] = {}

    def advance(self) -> bool:
        """Do the next piece: fit the head without the held-out strokes, or predict one window. True when done."""
        if self._head is None:
            rows = [*self._bank.rows(hider(self._sources, self._held.exclude)), *self._extra]
            ids = class_ids(self._classes)
            samples = join(rows, ids, self._config).to(self._bank.device)
            channels = self._bank.features.channels
            self._head = fit_head(samples, channels, len(ids), seed=self._config.seed).to(self._bank.device)
        elif self._windows:
            self._score(self._windows.pop(), self._head)
        if self._windows:
            return False
        self._decide()
        return True

    def _score(self, window: Window, head: Head) -> None:
        maps = [m.float() for m in self._bank.maps_for(self._sources[window.source], window.region)]
        with torch.inference_mode():
            instant, fine = (_probabilities(part(maps)) for part in (head, self.decoder))
        for share, scorer in self._scorers.items():
            scorer.add(window.labels, (1 - share) * instant + share * fine)

    def _decide(self) -> None:
        scores = {share: self._held.scores(scorer) for share, scorer in self._scorers.items()}
        dice = {share: found.balanced_dice for share, found in scores.items()}
        for share in SHARES[1:]:
            if dice[share] > dice[self.best_share] + CLEARLY:
                self.best_share = share
        shares = {str(share): None if np.isnan(value) else round(value, 4) for share, value in dice.items()}
        self.metrics = {**scores[self.best_share].to_json(), "share": self.best_share, "shares": shares}


def hider(
    sources: Sequence[Source], exclude: Mapping[int, Sequence[Unit]]
) -> Callable[[Source, Box], NDArray[np.bool_] | None]:
    """The function (source, region) -> mask of held-out pixels, or None where there are none."""
    held = {id(source): exclude.get(k, ()) for k, source in enumerate(sources)}

    def hidden(source: Source, region: Box) -> NDArray[np.bool_] | None:
        near = [u for u in held.get(id(source), ()) if u.region.intersection(region).area]
        masks = [unit.covers(region, source.frame) for unit in near]
        return np.logical_or.reduce(masks) if masks else None

    return hidden


def _probabilities(scores: torch.Tensor) -> NDArray[np.float32]:
    """Scores (1, K, h, w) of a cell with its margin to probabilities (K, CELL, CELL)."""
    size = CELL + 2 * MARGIN
    full = F.interpolate(scores.float(), size=(size, size), mode="bilinear", align_corners=False).softmax(1)
    out: NDArray[np.float32] = full[0, :, MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL].cpu().numpy()
    return out
