"""Training patches: classes, slides and strokes are drawn round robin; dense regions get a stated share.

For each patch a class is chosen, then a slide, then a stroke; a random labelled pixel of that stroke is placed anywhere
in the patch. A class with one stroke is therefore seen as often as one with a hundred. Nothing is written to disk, and
the same seed gives the same patches.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import TrainingError
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.distributed import ranks
from napari_sparseseg.learning.sources import Source, Unit, find_in_cells, find_pixel, stroke_area, training_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.strokes import Stroke
    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.learning.holdout import HeldOut

__all__ = ["Batch", "PatchSampler", "PatchStream", "ReadAhead", "Source"]

PATCH_MARGIN = 8
"""A patch is read larger by 1 / this of its side all around, to be turned without empty corners."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Patches at the training resolution.

    Attributes
    ----------
    pixels
        (B, h, w, C) of the slides' dtype.
    labels
        uint8 (B, h, w) class ids; 0 = unlabelled, or held out.
    dense
        bool (B,): drawn from a dense region.
    origins
        int64 (B, 3): index of the source, row and column of the patch's first pixel in the source's frame.
    brightfield
        Whether the pixels are stained tissue in 8-bit colour.
    pseudo
        uint8 (B, h, w) class ids that are only believed (`PseudoLabels`), 0 where `labels` is not; or None.
    """

    pixels: NDArray[Any]
    labels: NDArray[np.uint8]
    dense: NDArray[np.bool_]
    origins: NDArray[np.int64]
    brightfield: bool
    pseudo: NDArray[np.uint8] | None = None


class RoundRobin:
    """Indices in proportion to their weights, spread as evenly as possible, from a random start."""

    def __init__(self, weights: Sequence[float], rng: np.random.Generator) -> None:
        self._weights = np.asarray(weights, dtype=np.float64)
        self._credit = rng.random(len(self._weights)) * self._weights

    def next(self) -> int | None:
        """The next index; None when all were dropped."""
        total = self._weights.sum()
        if not total:
            return None
        self._credit += self._weights
        k = int(np.argmax(np.where(self._weights > 0, self._credit, -np.inf)))
        self._credit[k] -= total
        return k

    def drop(self, k: int) -> None:
        """Never return `k` again."""
        self._weights[k] = 0.0


class _Strokes:
    """The strokes of one class on one source, round robin. Those without labels left drop out."""

    def __init__(
        self,
        source: Source,
        class_id: int,
        strokes: Sequence[Stroke],
        held: Sequence[Unit],
        weights: Sequence[float],
        rng: np.random.Generator,
    ) -> None:
        self._source, self._class_id, self._strokes, self._held = source, class_id, strokes, held
        self._turns = RoundRobin(weights, rng)
        self._rng = rng

    def pixel(self) -> tuple[int, int] | None:
        """A labelled frame pixel (row, column); None when nothing of this class is left on the source."""
        while (k := self._turns.next()) is not None:
            found = find_pixel(self._source, self._strokes[k], self._rng, self._held)
            if found is not None:
                return found
            self._turns.drop(k)
        # Labels that no stroke accounts for, or that all hide in small remains of strokes.
        return find_in_cells(self._source, self._class_id, self._rng, self._held)


class PatchSampler:
    """Draws batches of patches from labelled slides.

    Parameters
    ----------
    sources
        Slides with labels; those whose role is not ``train`` are left out.
    config
        `patch_px`, `dense_fraction`, `area_power`.
    seed
        Of all random choices.
    exclude
        Per index of `sources` what is held out: its labels are 0 in every patch, wherever the patch comes from.
    margin
        Pixels to add around the `patch_px` square on every side; the labelled pixel stays out of the margin.

    Raises
    ------
    TrainingError
        When the slides differ in channels or dtype, or nothing is labelled.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: TrainConfig,
        seed: int | None = None,
        *,
        exclude: Mapping[int, Sequence[Unit]] | None = None,
        margin: int = 0,
    ) -> None:
        self._sources, self._config, self._margin = tuple(sources), config, margin
        self._rng = np.random.default_rng(config.seed if seed is None else seed)
        self._held = {k: tuple(units) for k, units in (exclude or {}).items()}
        usable = [k for k in self._training_indices() if not any(u.stroke is None for u in self._held.get(k, ()))]
        self.brightfield = _check_alike([self._sources[k] for k in usable])
        self._groups = self._group_strokes(usable, config.area_power)
        self._class_turns = RoundRobin([1.0] * len(self._groups), self._rng)
        self._regions = self._group_regions(usable)
        self._region_turns = RoundRobin([1.0] * len(self._regions), self._rng)
        self._dense_credit = float(self._rng.random()) * config.dense_fraction
        if not self._groups and not self._regions:
            raise TrainingError("there is nothing labelled to train on; scribble strokes of at least two classes.")

    @property
    def classes(self) -> tuple[int, ...]:
        """Ids of the classes that are drawn, ascending."""
        return tuple(c for c, _, _ in self._groups)

    def draw(self, n: int) -> Batch:
        """The next `n` patches; each holds at least one labelled pixel.

        Raises
        ------
        TrainingError
            When all labels have been erased, drawn over or held out.
        """
        side = self._config.patch_px + 2 * self._margin
        origins = np.zeros((n, 3), np.int64)
        labels = np.zeros((n, side, side), np.uint8)
        dense = np.zeros(n, bool)
        pixels: list[NDArray[Any]] = []
        for b in range(n):
            k, row, column, dense[b] = self._next_pixel()
            region = self._place(self._sources[k], row, column, side)
            origins[b] = k, region.y, region.x
            labels[b] = training_labels(self._sources[k], region, self._held.get(k, ()))
            pixels.append(self._sources[k].read_pixels(region))
        return Batch(np.stack(pixels), labels, dense, origins, self.brightfield)

    def _training_indices(self) -> list[int]:
        return [k for k, source in enumerate(self._sources) if source.role == "train"]

    def _group_strokes(
        self, usable: Sequence[int], power: float
    ) -> list[tuple[int, list[tuple[int, _Strokes]], RoundRobin]]:
        """(class id, its strokes per source, order of the sources), by class id."""
        groups: dict[int, list[tuple[int, _Strokes]]] = {}
        for k in usable:
            source, held = self._sources[k], self._held.get(k, ())
            out = {u.stroke.id for u in held if u.stroke is not None and u.stroke.kind != "fill"}
            by_class: dict[int, list[Stroke]] = {}
            for stroke in source.labels.strokes:
                if stroke.class_id and stroke.kind != "erase" and stroke.id not in out:
                    by_class.setdefault(stroke.class_id, []).append(stroke)
            drawn = {s.class_id for s in source.labels.strokes}
            for class_id in (c for c, count in source.labels.counts().items() if count and c not in drawn):
                # A rest class of a dense region belongs to the dense share; labels without any stroke come here.
                if class_id not in {r.class_id for r in source.labels.dense_regions}:
                    by_class[class_id] = []
            for class_id, strokes in by_class.items():
                weights = [stroke_area(s) ** power for s in strokes]
                members = _Strokes(source, class_id, strokes, held, weights, self._rng)
                groups.setdefault(class_id, []).append((k, members))
        return [(c, groups[c], RoundRobin([1.0] * len(groups[c]), self._rng)) for c in sorted(groups)]

    def _group_regions(self, usable: Sequence[int]) -> list[tuple[int, list[Stroke], RoundRobin]]:
        """(source index, its dense regions, their order)."""
        out = []
        for k in usable:
            held = {u.stroke.id for u in self._held.get(k, ()) if u.stroke is not None}
            regions = [r for r in self._sources[k].labels.dense_regions if r.id not in held]
            if regions:
                out.append((k, regions, RoundRobin([1.0] * len(regions), self._rng)))
        return out

    def _next_pixel(self) -> tuple[int, int, int, bool]:
        """(source index, row, column, from a dense region) of the next labelled pixel."""
        self._dense_credit += self._config.dense_fraction
        if self._dense_credit >= 1.0:
            self._dense_credit -= 1.0
            found = self._dense_pixel()
            if found is not None:
                return (*found, True)
        found = self._scribble_pixel()
        if found is not None:
            return (*found, False)
        found = self._dense_pixel()
        if found is not None:
            return (*found, True)
        raise TrainingError("no labelled pixel is left to train on: all were erased, drawn over or held out.")

    def _scribble_pixel(self) -> tuple[int, int, int] | None:
        while (c := self._class_turns.next()) is not None:
            _, members, turns = self._groups[c]
            while (s := turns.next()) is not None:
                k, strokes = members[s]
                found = strokes.pixel()
                if found is not None:
                    return (k, *found)
                turns.drop(s)
            self._class_turns.drop(c)
        return None

    def _dense_pixel(self) -> tuple[int, int, int] | None:
        while (g := self._region_turns.next()) is not None:
            k, regions, turns = self._regions[g]
            while (r := turns.next()) is not None:
                found = find_pixel(self._sources[k], regions[r], self._rng, self._held.get(k, ()))
                if found is not None:
                    return (k, *found)
                turns.drop(r)
            self._region_turns.drop(g)
        return None

    def _place(self, source: Source, row: int, column: int, side: int) -> Box:
        """A square around a pixel, which lands anywhere in it; moved into the slide where that is large enough."""
        patch = self._config.patch_px
        start = []
        for at, length in zip((row, column), source.shape, strict=True):
            anywhere = at - int(self._rng.integers(0, patch))
            start.append(min(max(anywhere, min(0, length - patch)), max(0, length - patch)) - self._margin)
        return Box(start[0], start[1], side, side)


class ReadAhead:
    """Draws the next batch in a separate thread while the last one is learned from; the batches are the same.

    Parameters
    ----------
    sampler
        Used by that thread only from now on.
    """

    def __init__(self, sampler: PatchSampler) -> None:
        self._draw = sampler.draw
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sparseseg-read-ahead")
        self._next: Future[Batch] | None = None

    def draw(self, n: int) -> Batch:
        """The next `n` patches; `n` is the same every time.

        Raises
        ------
        Exception
            What drawing them raised.
        """
        ready = self._next or self._thread.submit(self._draw, n)
        self._next = None
        batch = ready.result()
        self._next = self._thread.submit(self._draw, n)
        return batch

    def close(self) -> None:
        """Forget the batch drawn ahead, wait for the read under way and end the thread."""
        self._thread.shutdown(cancel_futures=True)


class PatchStream:
    """Batches of training patches, from a new sampler whenever the labels or what is held out have changed.

    Parameters
    ----------
    config
        Of the run.
    held
        What it holds out when a sampler is made is left out of the batches.
    """

    def __init__(self, config: TrainConfig, held: HeldOut) -> None:
        self._config, self._held = config, held
        self._sources: tuple[Source, ...] = ()
        self._ahead: ReadAhead | None = None
        self._made = 0

    def restart(self, sources: Sequence[Source]) -> None:
        """Draw from these sources from now on."""
        self._sources = tuple(sources)
        self.close()

    def close(self) -> None:
        """End the reading thread and discard its batch; the next `draw` starts another."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def draw(self, n: int) -> Batch:
        """The next `n` patches; see `PatchSampler.draw`."""
        if self._ahead is None:
            # Another seed each time, or every stroke would bring the same patches again; each rank draws its own.
            self._made += 1
            seed = self._config.seed + 7919 * self._made + 104_729 * ranks().rank
            margin = self._config.patch_px // PATCH_MARGIN
            exclude = self._held.exclude
            self._ahead = ReadAhead(PatchSampler(self._sources, self._config, seed, exclude=exclude, margin=margin))
        return self._ahead.draw(n)


def _check_alike(sources: Sequence[Source]) -> bool:
    """Check that patches of all sources fit into one batch; whether they are brightfield.

    Raises
    ------
    TrainingError
        Where they do not.
    """
    if not sources:
        raise TrainingError("no slide is left to train on: open one, or do not hold all of them out.")
    first = sources[0].slide
    for other in (s.slide for s in sources[1:]):
        if other.channels != first.channels or other.dtype != first.dtype:
            raise TrainingError(
                f"{other.path} has {other.dtype} channels {', '.join(other.channels)}, but {first.path} has "
                f"{first.dtype} {', '.join(first.channels)}; train together only on slides of one kind."
            )
    return all(s.brightfield for s in sources)
