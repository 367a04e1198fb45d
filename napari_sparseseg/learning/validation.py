"""Instant head against U-Net decoder, or one plain U-Net against another, on held-out strokes.

In pieces short enough to be done between other work, and when follows from counts of steps and windows, not from the
clock: a seed and a number of steps give one result on any machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning.feature_cache import CELL, MARGIN, FeatureCache, LabelledFeatures, join
from napari_sparseseg.learning.head import fit_head
from napari_sparseseg.learning.scores import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.holdout import HeldOut, Window
    from napari_sparseseg.learning.network import Decoder, PlainUNet
    from napari_sparseseg.learning.sources import Source, Unit

SHARES = (0.5, 0.8)
"""Shares of the decoder that are compared. Never 1: the head has seen the newest stroke, the decoder may not have."""
FIRST = 10
"""Fine steps before the first comparison."""
TIME_SHARE = 0.1
"""Share of the fine part's time that the next ones take, about."""
FIT_STEPS, WINDOW_STEPS = 4.0, 0.45
"""What fitting one of the heads and predicting one window cost, in steps of 4 patches of 192 px on a CPU."""
LEAST_STEPS = 10
"""Between two comparisons."""
SWAP_AFTER = 12
"""Comparisons until other strokes are held out, so that the decoder learns from those too."""
INSTANT = "instant"
NOISE = 0.02
"""Balanced Dice that a few held-out strokes cannot tell apart: within it the decoder is served rather than the head.
Among the shares the log loss decides, which is less coarse than Dice.

Strokes lie where a class is plain, a slide is decided where it is not: on EBHI-Seg (seed 4, not of ``bench_learner``;
60 CPU seconds, 2026-11-26) the head had 0.955 on held-out strokes against 0.944 mixed with the decoder, but 0.848
against 0.860 on the dense truth of other cases.
"""
KEEP_NOISE = 0.05
"""The same for a later decoder against an earlier one, of which the later is the better guess: with 0.01 a decoder of
ten steps was kept for a minute by a lucky score (0.642 against 0.612, seven classes, seed 3), with 0.460 on dense truth
where the last one had 0.510."""
SURE = 0.8
"""Probability from which on the decoder is sure of a pixel."""


class Turns:
    """When to compare, and when to hold out others: comparing keeps to about `TIME_SHARE` of the time.

    Attributes
    ----------
    stale
        Comparisons in a row that found nothing better, since the labels changed last.
    """

    def __init__(self, first: int = FIRST) -> None:
        self._next, self._comparisons = first, 0
        self.stale, self._best = 0, -math.inf

    @property
    def fresh(self) -> bool:
        """Whether nothing was scored yet on what is held out now."""
        return self._best == -math.inf

    def restart(self) -> None:
        """Labels have changed: scores from before do not compare."""
        self.stale, self._best = 0, -math.inf

    def due(self, steps: int) -> bool:
        """Whether to compare after this many steps."""
        return steps >= self._next

    def begun(self, steps: int, cost: float) -> None:
        """A comparison begins that takes as long as `cost` steps."""
        self._next = steps + max(LEAST_STEPS, round(cost / TIME_SHARE))

    def skipped(self, steps: int, cost: float) -> None:
        """There was nothing to compare on, hence nothing was gained either: who is patient must not wait for ever."""
        self.begun(steps, cost)
        self.stale += 1

    def swap(self) -> bool:
        """Count a comparison that is done; whether it is time to hold out others."""
        self._comparisons += 1
        due = self._comparisons % SWAP_AFTER == 0
        if due:
            self._best = -math.inf
        return due

    def keeps_up(self, score: float | None) -> bool:
        """Whether this score is as good as the best on what is held out now, to within `KEEP_NOISE`.

        What is not better than the best is stale; the first one is neither.
        """
        first, value = self.fresh, -math.inf if score is None else score
        if not first:
            self.stale = 0 if value > self._best else self.stale + 1
        self._best, before = max(self._best, value), self._best
        return first or value >= before - KEEP_NOISE


class Contest(Protocol):
    """A comparison under way.

    Attributes
    ----------
    fine
        The trained part to serve after it.
    best_share
        Share of it in the result.
    augmented
        Whether the head is better with the augmented patches.
    reliable
        How far the trained part can be believed where it is sure: right pixels of the sure ones, 0..1.
    metrics
        Scores of the winner.
    """

    fine: Decoder | PlainUNet
    best_share: float
    augmented: bool
    reliable: float
    metrics: dict[str, Any]

    def advance(self) -> bool:
        """Do the next piece; True when done."""


def cost_of(windows: int, config: TrainConfig) -> float:
    """About how many steps take as long as a comparison on so many windows."""
    fits = 2 * FIT_STEPS if config.architecture == "pretrained" else 0.0
    return (fits + WINDOW_STEPS * windows) * 4 * 192**2 / (config.batch_size * config.patch_px**2)


class Comparison:
    """One comparison; call `advance` until it says that it is done.

    Candidates are the head as it is without any training (``instant``), the head that learned from augmented patches
    too, and mixtures of that with the decoder. What scores below a head by more than `NOISE` is not served.

    Parameters
    ----------
    bank
        Features of what is labelled.
    held
        What is held out; the decoder must have been trained without it.
    sources
        As given to `held`.
    fine
        Averaged weights of the decoder; belongs to the comparison.
    settings
        Class table and config.
    rows
        Further rows for the heads: (of remembered slides, of augmented patches).
    most
        Largest share that may win. After a swap the decoder has been trained on what is held out now, the heads have
        not: it can keep its share then, but not gain.

    Attributes
    ----------
    best_share : float
        Share of the decoder to serve.
    augmented : bool
        Whether the head is better with the augmented patches.
    reliable : float
        Of the held-out pixels that the decoder alone is sure of, the share that it has right; the mean over the classes
        held out, where a class that it is never sure of counts 0.
    metrics : dict
        Scores of the winner, with the balanced Dice of all as ``shares`` (``instant``: the untrained one).
    """

    def __init__(
        self,
        bank: FeatureCache,
        held: HeldOut,
        sources: Sequence[Source],
        fine: Decoder,
        settings: tuple[tuple[ClassDef, ...], TrainConfig],
        rows: tuple[Sequence[LabelledFeatures], Sequence[LabelledFeatures]] = ((), ()),
        most: float = 1.0,
    ) -> None:
        self._bank, self._held, self._sources = bank, held, tuple(sources)
        self._decoder: Decoder = fine
        self.fine: Decoder | PlainUNet = fine
        self._classes, self._config = settings
        self._remembered, self._augmented = tuple(rows[0]), tuple(rows[1])
        self._heads: list[Head] = []
        self._windows: list[Window] = list(held.windows())
        self._names: list[float | str] = [INSTANT, 0.0, *SHARES]
        self._scorers = {name: Scorer(self._classes) for name in self._names}
        self._most = most if held.seen else 1.0
        self._ids = np.array(class_ids(self._classes))
        self._held_pixels, self._sure, self._right = np.zeros((3, len(self._ids)), np.int64)
        self.best_share, self.augmented, self.reliable = 0.0, False, 0.0
        self.metrics: dict[str, Any] = {}

    def advance(self) -> bool:
        """Do the next piece: fit a head without the held-out strokes, or predict one window. True when done."""
        if len(self._heads) < 2:
            self._heads.append(self._fit(self._augmented if self._heads else ()))
            return False
        if self._windows:
            self._score(self._windows.pop())
        if self._windows:
            return False
        self._decide()
        return True

    def _fit(self, augmented: Sequence[LabelledFeatures]) -> Head:
        rows = [*self._bank.rows(hider(self._sources, self._held.exclude)), *self._remembered, *augmented]
        ids, device = class_ids(self._classes), self._bank.device
        samples, seed = join(rows, ids, self._config), self._config.seed
        return fit_head(samples, self._bank.features.channels, len(ids), seed=seed, device=device).to(device)

    def _score(self, window: Window) -> None:
        source, tuned = self._sources[window.source], self._decoder.tuned
        maps = [m.float() for m in self._bank.maps_for(source, window.region)]
        own = maps if tuned is None else self._bank.maps_by(tuned, source, window.region)
        with torch.inference_mode():
            instant, head = (_probabilities(part(maps)) for part in self._heads)
            fine = _probabilities(self._decoder(own))
        self._count_sure(window.labels, fine)
        for name, scorer in self._scorers.items():
            share = 0.0 if isinstance(name, str) else name
            scorer.add(window.labels, instant if name == INSTANT else (1 - share) * head + share * fine)

    def _count_sure(self, labels: NDArray[np.uint8], fine: NDArray[np.float32]) -> None:
        count = len(self._ids)
        self._held_pixels += (labels[..., None] == self._ids).sum((0, 1))
        sure = (labels > 0) & (fine.max(0) > SURE)
        predicted = fine.argmax(0)[sure]
        self._sure += np.bincount(predicted, minlength=count)
        self._right += np.bincount(predicted[self._ids[predicted] == labels[sure]], minlength=count)

    def _decide(self) -> None:
        if self._held_pixels.any():
            self.reliable = float((self._right / np.maximum(self._sure, 1))[self._held_pixels > 0].mean())
        scores = {name: self._held.scores(scorer) for name, scorer in self._scorers.items()}
        dice = {name: found.balanced_dice for name, found in scores.items()}
        best: float | str = INSTANT if dice[INSTANT] > dice[0.0] else 0.0
        allowed = [share for share in SHARES if share <= self._most]
        fine = min(allowed, key=lambda share: scores[share].log_loss, default=0.0)
        if dice[fine] >= dice[best] - NOISE:
            best = fine
        self.augmented = best != INSTANT
        self.best_share = 0.0 if isinstance(best, str) else best
        shares = {str(name): None if np.isnan(value) else round(value, 4) for name, value in dice.items()}
        self.metrics = {**scores[best].to_json(), "share": self.best_share, "shares": shares}


class PlainComparison:
    """The plain U-Net as it is now on held-out strokes, and as it is served where that was not scored on these yet.

    Parameters
    ----------
    held, sources, classes
        As for `Comparison`.
    scale
        Of the input.
    nets
        Averaged weights now; then what is served, if anything that was scored. They belong to the comparison.
    """

    def __init__(
        self,
        held: HeldOut,
        sources: Sequence[Source],
        classes: Sequence[ClassDef],
        scale: InputScale,
        nets: Sequence[PlainUNet],
    ) -> None:
        self._held, self._sources, self._scale, self._nets = held, tuple(sources), scale, tuple(nets)
        self._scorers = [Scorer(classes) for _ in nets]
        self._windows: list[Window] = list(held.windows())
        self.fine: Decoder | PlainUNet = nets[0]
        self.best_share, self.augmented, self.reliable = 1.0, False, 0.0
        self.metrics: dict[str, Any] = {}

    def advance(self) -> bool:
        """Predict one window. True when done."""
        if self._windows:
            self._score(self._windows.pop())
        if self._windows:
            return False
        scores = [self._held.scores(scorer) for scorer in self._scorers]
        # As elsewhere, the later one where the strokes cannot tell them apart.
        best = next((k for k in range(1, len(scores)) if scores[k].balanced_dice > scores[0].balanced_dice + NOISE), 0)
        self.fine, self.metrics = self._nets[best], scores[best].to_json()
        return True

    def _score(self, window: Window) -> None:
        pixels = self._sources[window.source].read_pixels(window.region.grown(MARGIN))
        for net, scorer in zip(self._nets, self._scorers, strict=True):
            device = net.scores.weight.device
            image = self._scale.unit(pixels[None]).to(device).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                scorer.add(window.labels, _probabilities(net.logits(image)))


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
