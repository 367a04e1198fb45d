"""Instant head against U-Net decoder, or one plain U-Net against another, on held-out strokes.

A comparison is done in pieces short enough to fit between other work. Its time follows from counts of steps and windows
instead of the clock, so a seed and a number of steps give one result on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from napari_sparseseg.config import class_ids
from napari_sparseseg.learning.calibration import Calibration, calibrate, thinned
from napari_sparseseg.learning.feature_cache import CELL, MARGIN, LabelledFeatures, join
from napari_sparseseg.learning.head import fit_head, mean_of
from napari_sparseseg.metrics import Scorer, balanced_dice, confusion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.learning.feature_cache import FeatureCache
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.holdout import HeldOut, Window
    from napari_sparseseg.learning.network import Decoder, PlainUNet
    from napari_sparseseg.learning.sources import Source, Unit

    Place = tuple[int, NDArray[np.int64]]
    """Index of a window's slide, confusion (K, K + 1) there."""

FIT_STEPS, WINDOW_STEPS = 4.0, 0.45
"""Cost of fitting one of the heads and of predicting one window, in steps of 4 patches of 192 px on a CPU."""
INSTANT = "instant"
PRIOR = 0.5
"""Share of a settled decoder where held-out strokes tell nothing, or may have been trained on."""
LEAST_PLACES = 3
"""Held-out slides or windows from which on the spread between them means anything."""
CHANCE = 0.1
"""Of the way from guessing to perfect: a best score below it tells nothing about the candidates."""
SURE = 0.8
"""Probability from which on the decoder counts as sure of a pixel."""


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """When to compare, and what difference counts."""

    first: int = 10
    """Fine steps before the first comparison."""
    time_share: float = 0.1
    """Approximate share of the fine part's time that later comparisons take."""
    least_steps: int = 10
    """Fewest steps between two comparisons."""
    growth: float = 2.0
    """Early on the next comparison comes after this many times the steps so far at the latest: the head gains much from
    the first augmented patches. See D116."""
    swap_after: int = 12
    """Comparisons until other strokes are held out, so that the decoder learns from those too."""
    shares: tuple[float, ...] = (0.3, 0.5, 0.8)
    """Shares of the decoder to compare. Not 1: the head has seen the newest stroke, the decoder may not have."""
    ripe: tuple[int, ...] = (0, 200, 350)
    """Fine steps from which on the decoder may have each of these shares: what a young decoder lacks, held-out strokes
    do not show. See D123."""
    noise: float = 0.02
    """Balanced Dice that a few held-out strokes cannot tell apart: within it the decoder is served rather than the
    head. Among the shares the log loss decides, which is less coarse than Dice. See D5."""
    keep_noise: float = 0.05
    """The same for a later decoder against an earlier one, and for the head with augmented patches against the head
    without: the later one is the better guess. See D5 and D116."""
    settled: int = 100
    """Fine steps after which a decoder is usually better than the head: from then on the spread between the held-out
    places counts as noise too, and strokes that tell nothing leave it `PRIOR`. See D115."""


class ValidationSchedule:
    """Decides when to compare and when to hold out other strokes.

    Attributes
    ----------
    stale
        Comparisons in a row that found nothing better, since the labels last changed.
    """

    def __init__(self, settings: ValidationSettings | None = None) -> None:
        self._settings = settings or ValidationSettings()
        self._next, self._comparisons = self._settings.first, 0
        self.stale, self._best = 0, -math.inf
        self._served: tuple[float, Sequence[Place]] = -math.inf, ()

    @property
    def fresh(self) -> bool:
        """Whether nothing has been scored yet on what is held out now."""
        return self._best == -math.inf

    def restart(self) -> None:
        """Forget the scores: the labels have changed, so earlier ones do not compare."""
        self.stale, self._best = 0, -math.inf

    def is_due(self, steps: int) -> bool:
        """Whether to compare after this many steps."""
        return steps >= self._next

    def begin(self, steps: int, cost: float) -> None:
        """Plan the next comparison after one that takes as long as `cost` steps."""
        soon = min(cost / self._settings.time_share, self._settings.growth * steps)
        self._next = steps + max(self._settings.least_steps, round(soon))

    def skip(self, steps: int, cost: float) -> None:
        """Plan the next comparison when there was nothing to compare on; counts as stale so that `patience` ends."""
        self.begin(steps, cost)
        self.stale += 1

    def finish(self, *, at_once: bool = False) -> bool:
        """Count a finished comparison; whether it is time to hold out other strokes."""
        self._comparisons += 1
        due = at_once or self._comparisons % self._settings.swap_after == 0
        if due:
            self._best = -math.inf
        return due

    def accepts(self, score: float | None, places: Sequence[Place] = ()) -> bool:
        """Whether this score is as good as that of the model served, on what is held out now.

        As good: to within `keep_noise` and the `spread` of the difference over `places`. The served one it is, not the
        best so far, which is the luckiest of all. A score that is not better than the best is stale; the first one
        never is.
        """
        first, value = self.fresh, -math.inf if score is None else score
        if not first:
            self.stale = 0 if value > self._best else self.stale + 1
        self._best = max(self._best, value)
        served, before = self._served
        doubt = self._settings.keep_noise
        if len(before) == len(places):
            doubt += spread([(source, a, b) for (source, a), (_, b) in zip(before, places, strict=True)])
        good = first or value >= served - doubt
        if good:
            self._served = value, tuple(places)
        return good


def cost_of(windows: int, config: TrainConfig) -> float:
    """Approximate cost of a comparison on this many windows, in steps."""
    fits = 2 * FIT_STEPS if config.architecture == "pretrained" else 0.0
    return (fits + WINDOW_STEPS * windows) * 4 * 192**2 / (config.batch_size * config.patch_px**2)


class Comparison:
    """Instant head against decoder on held-out strokes.

    Candidates are the head as it is without any training (``instant``), its mean with a head that also learned from
    augmented patches, and mixtures of that with the decoder. A mixture that scores below a head by more than `noise` is
    not served. Held-out strokes that no candidate predicts better than by chance were odd ones: they decide nothing.

    Parameters
    ----------
    cache
        Features of what is labelled.
    held
        What is held out; the decoder must have been trained without it.
    config
        Of the run.
    fine
        Averaged weights of the decoder; owned by the comparison.
    further
        Further features for the heads: (of slides that are not open, of augmented patches).
    most
        Largest share that may win. After a swap the decoder has been trained on what is held out now, the heads have
        not: it can keep its share then, but not gain more than `PRIOR`.
    steps
        Fine steps that the decoder was trained for.

    Attributes
    ----------
    best_share : float
        Share of the decoder to serve.
    augmented : bool
        Whether the head is better with the augmented patches.
    reliable : float
        Of the held-out pixels that the decoder alone is sure of, the share that it has right: mean over the classes
        held out, where a class that it is never sure of counts 0.
    informative : bool
        Whether any candidate was better than chance on what is held out.
    calibration : Calibration
        Of the winner.
    places
        Per window the index of its slide and the confusion of the winner.
    metrics : dict
        Scores of the winner, with the balanced Dice of all as ``shares`` (``instant``: the untrained one).
    """

    def __init__(
        self,
        cache: FeatureCache,
        held: HeldOut,
        config: TrainConfig,
        fine: Decoder,
        further: tuple[Sequence[LabelledFeatures], Sequence[LabelledFeatures]] = ((), ()),
        most: float = 1.0,
        settings: ValidationSettings | None = None,
        steps: int = 0,
    ) -> None:
        self._cache, self._held, self._config = cache, held, config
        self._settings = settings or ValidationSettings()
        self._decoder: Decoder = fine
        self.fine: Decoder | PlainUNet = fine
        self._remembered, self._augmented = tuple(further[0]), tuple(further[1])
        self._heads: list[Head] = []
        self._windows: list[Window] = list(held.windows())
        self._names: list[float | str] = [INSTANT, 0.0, *self._settings.shares]
        self._scorers = {name: Scorer(held.classes) for name in self._names}
        self._settled = steps >= self._settings.settled
        most = max(most, PRIOR if self._settled else 0.0) if held.seen else 1.0
        pairs = zip(self._settings.shares, self._settings.ripe, strict=True)
        self._allowed = [share for share, ripe in pairs if share <= most and steps >= ripe]
        self._reliability = Reliability(class_ids(held.classes))
        self._places: list[tuple[int, dict[float | str, NDArray[np.int64]]]] = []
        self.places: list[Place] = []
        self._pixels: list[tuple[NDArray[Any], ...]] = []
        self._rng = np.random.default_rng(config.seed)
        self.best_share, self.augmented, self.reliable, self.informative = 0.0, False, 0.0, True
        self.calibration = Calibration()
        self.metrics: dict[str, Any] = {}

    def advance(self) -> bool:
        """Do the next piece: fit a head without the held-out strokes, or predict one window. True when done."""
        if len(self._heads) < 2:
            further = self._fit(self._augmented) if self._heads else self._fit(())
            self._heads.append(mean_of([*self._heads, further]))
            return False
        if self._windows:
            self._score(self._windows.pop())
        if self._windows:
            return False
        self._decide()
        return True

    def _fit(self, augmented: Sequence[LabelledFeatures]) -> Head:
        hidden = hider(self._held.sources, self._held.exclude)
        rows = [*self._cache.rows(hidden), *self._remembered, *augmented]
        ids, device = class_ids(self._held.classes), self._cache.device
        samples, seed = join(rows, ids, self._config), self._config.seed
        return fit_head(samples, self._cache.features.channels, len(ids), seed=seed, device=device).to(device)

    def _score(self, window: Window) -> None:
        source, tuned = self._held.sources[window.source], self._decoder.tuned
        maps = [m.float() for m in self._cache.maps_for(source, window.region)]
        own = maps if tuned is None else self._cache.maps_by(tuned, source, window.region)
        with torch.inference_mode():
            parts = [*(_scores(part(maps)) for part in self._heads), _scores(self._decoder(own))]
            instant, head, fine = (_probabilities(part) for part in parts)
        self._reliability.add(window.labels, fine)
        ids = class_ids(self._held.classes)
        (rows, columns), truth = thinned(window.labels, ids, self._rng)
        self._pixels.append((truth, *(part[:, rows, columns].T.numpy() for part in parts)))
        counts: dict[float | str, NDArray[np.int64]] = {}
        for name in self._names:
            share = 0.0 if isinstance(name, str) else name
            mixed = instant if name == INSTANT else (1 - share) * head + share * fine
            self._scorers[name].add(window.labels, mixed)
            counts[name] = confusion(window.labels, np.array(ids, np.uint8)[mixed.argmax(0)], ids)
        self._places.append((window.source, counts))

    def _decide(self) -> None:
        self.reliable = self._reliability.value
        scores = {name: self._held.scores(scorer) for name, scorer in self._scorers.items()}
        dice = {name: found.balanced_dice for name, found in scores.items()}
        # Augmented patches teach what strokes of the same slides cannot test: other slides and stains.
        doubt = self._settings.keep_noise + self._spread(INSTANT, 0.0)
        best: float | str = INSTANT if dice[INSTANT] > dice[0.0] + doubt else 0.0
        fine = min(self._allowed, key=lambda share: scores[share].log_loss, default=0.0)
        chance = 1 / max(1, int((scores[best].confusion.sum(1) > 0).sum()))
        self.informative = max(dice.values()) > chance + CHANCE * (1 - chance)
        if not self.informative:
            known = [share for share in self._allowed if share <= PRIOR]
            best = max(known) if self._settled and known else best
        elif dice[fine] >= dice[best] - self._settings.noise - self._spread(fine, best):
            best = fine
        self.places = [(source, counts[best]) for source, counts in self._places]
        self.augmented = best != INSTANT
        self.best_share = 0.0 if isinstance(best, str) else best
        if self.informative:
            truth, *parts = (np.concatenate(values) for values in zip(*self._pixels, strict=True))
            self.calibration = calibrate(parts[0 if best == INSTANT else 1], parts[2], self.best_share, truth)
        shares = {str(name): None if np.isnan(value) else round(value, 4) for name, value in dice.items()}
        found = {**scores[best].to_json(), **self.calibration.to_json()}
        self.metrics = {**found, "share": self.best_share, "shares": shares}

    def _spread(self, one: float | str, other: float | str) -> float:
        """`spread` of two candidates; 0 before the decoder has settled."""
        if not self._settled:
            return 0.0
        return spread([(source, counts[one], counts[other]) for source, counts in self._places])


def spread(places: Sequence[tuple[int, NDArray[np.int64], NDArray[np.int64]]]) -> float:
    """Standard error of the difference in balanced Dice of two candidates, by a jackknife.

    Parameters
    ----------
    places
        Per window the index of its slide, and the confusion (K, K + 1) of either candidate.

    Returns
    -------
    Over slides if there are `LEAST_PLACES` of them, else over windows; 0 for fewer windows, which tell nothing of it.
    """
    sources = {source for source, _, _ in places}
    groups = [s if len(sources) >= LEAST_PLACES else k for k, (s, _, _) in enumerate(places)]
    found = []
    for group in sorted(set(groups)):
        rest = [(a, b) for g, (_, a, b) in zip(groups, places, strict=True) if g != group]
        one, other = (balanced_dice(np.sum(counts, axis=0)) for counts in zip(*rest, strict=True))
        found.append(one - other)
    if len(found) < LEAST_PLACES:
        return 0.0
    return float(np.sqrt((len(found) - 1) * np.nanvar(found)))


class Reliability:
    """How often a network is right where it is sure: of each held-out class, right among the pixels predicted so.

    Parameters
    ----------
    ids
        Class ids in channel order.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids)
        self._held, self._sure, self._right = np.zeros((3, len(self._ids)), np.int64)

    def add(self, labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        """Count a window: held-out labels (h, w), 0 = not scored; probabilities (K, h, w)."""
        count = len(self._ids)
        self._held += (labels[..., None] == self._ids).sum((0, 1))
        sure = (labels > 0) & (probabilities.max(0) > SURE)
        predicted = probabilities.argmax(0)[sure]
        self._sure += np.bincount(predicted, minlength=count)
        self._right += np.bincount(predicted[self._ids[predicted] == labels[sure]], minlength=count)

    @property
    def value(self) -> float:
        """Mean over the classes held out; a class that it is never sure of counts 0, and so does no class at all."""
        if not self._held.any():
            return 0.0
        return float((self._right / np.maximum(self._sure, 1))[self._held > 0].mean())


class PlainComparison:
    """The plain U-Net as it is now on held-out strokes, and as it is served where that was not scored on these yet.

    Parameters
    ----------
    held
        What is held out; the networks must have been trained without it.
    scale
        Of the input.
    nets
        Averaged weights now; then those served, if they were ever scored. Owned by the comparison.
    """

    def __init__(
        self, held: HeldOut, scale: InputScale, nets: Sequence[PlainUNet], settings: ValidationSettings | None = None
    ) -> None:
        self._held, self._scale, self._nets = held, scale, tuple(nets)
        self._noise = (settings or ValidationSettings()).noise
        self.places: list[Place] = []
        self._scorers = [Scorer(held.classes) for _ in nets]
        self._windows: list[Window] = list(held.windows())
        self.fine: Decoder | PlainUNet = nets[0]
        self.best_share, self.augmented, self.reliable, self.informative = 1.0, False, 0.0, True
        self.calibration = Calibration()
        self.metrics: dict[str, Any] = {}

    def advance(self) -> bool:
        """Predict one window. True when done."""
        if self._windows:
            self._score(self._windows.pop())
        if self._windows:
            return False
        scores = [self._held.scores(scorer) for scorer in self._scorers]
        # As in `Comparison`, the later one where the strokes cannot tell them apart.
        least = scores[0].balanced_dice + self._noise
        best = next((k for k in range(1, len(scores)) if scores[k].balanced_dice > least), 0)
        self.fine, self.metrics = self._nets[best], scores[best].to_json()
        return True

    def _score(self, window: Window) -> None:
        pixels = self._held.sources[window.source].read_pixels(window.region.grown(MARGIN))
        for net, scorer in zip(self._nets, self._scorers, strict=True):
            device = net.scores.weight.device
            image = self._scale.unit(pixels[None]).to(device).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                scorer.add(window.labels, _probabilities(_scores(net.logits(image))))


def hider(
    sources: Sequence[Source], exclude: Mapping[int, Sequence[Unit]]
) -> Callable[[Source, Box], NDArray[np.bool_] | None]:
    """A function (source, region) -> bool mask of the held-out pixels, or None where there are none."""
    held = {id(source): exclude.get(k, ()) for k, source in enumerate(sources)}

    def hidden(source: Source, region: Box) -> NDArray[np.bool_] | None:
        near = [u for u in held.get(id(source), ()) if u.region.intersection(region).area]
        masks = [unit.covers(region, source.frame) for unit in near]
        return np.logical_or.reduce(masks) if masks else None

    return hidden


def _scores(scores: torch.Tensor) -> torch.Tensor:
    """Scores (1, K, h, w) of a cell with its margin, at the size of the cell: (K, CELL, CELL), on the CPU."""
    size = CELL + 2 * MARGIN
    full = F.interpolate(scores.float(), size=(size, size), mode="bilinear", align_corners=False)
    return full[0, :, MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL].cpu()


def _probabilities(scores: torch.Tensor) -> NDArray[np.float32]:
    """Scores (K, CELL, CELL) to probabilities."""
    out: NDArray[np.float32] = scores.softmax(0).numpy()
    return out
