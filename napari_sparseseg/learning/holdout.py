"""Scores that cannot leak: whole strokes, or whole slides where there are several, are held out and swapped over time.

Held-out labels are removed from every training patch pixel by pixel (`Unit.covers`), besides choosing where patches are
drawn. A swap sends held-out strokes to training and holds out others. A model that continues to learn across a swap has
seen the new held-out strokes: `Scores.seen` counts them, and only a score without any is a test of unseen strokes. No
torch here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning.sources import held_labels, is_alive, occupied_cells, units_of, whole_slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.learning.sources import Source, Unit
    from napari_sparseseg.metrics import Scorer, Scores
    from napari_sparseseg.slides import Slide

    Key = tuple[int, tuple[int, Box | None]]
    """Number of the slide, key of the unit on it."""

MOST_WINDOWS = 24
"""Squares that are predicted for one score, where not said otherwise."""
_slide_numbers = itertools.count()
_LOOKS = 6
"""Cells of a stroke that are searched for labels before it is passed over."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A square to predict for scoring: index of its source, region in the source's frame, held-out labels there."""

    source: int
    region: Box
    labels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A unit with the index of its source and what identifies it in every state of the labels."""

    source: int
    unit: Unit
    key: Key


class HeldOut:
    """Chooses strokes or slides to hold out, follows edits of the labels, swaps on request, and finds windows to score.

    Slides whose role is ``held-out`` are all that is held out when they have labels. Else, with `min_slides` labelled
    slides or more, whole slides are; and strokes, of each class that is not yet covered and has at least two. Dense
    regions are held out last, and so are slides with one, while these are fewer than those without: they teach what
    strokes cannot, where a class ends. See D114.

    Parameters
    ----------
    seed
        Of all random choices.
    fraction
        Share of the strokes (or slides) of each class to hold out; at least one, never all.
    most
        Most strokes of one class to hold out; more would cost labels and add little.
    min_slides
        Labelled slides from which on whole slides are held out.
    window
        Side in frame pixels of the squares that are predicted for scoring, on the frame's absolute grid.
    max_windows
        Most windows; the classes choose them in turn.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        fraction: float = 0.2,
        most: int = 12,
        min_slides: int = 3,
        window: int = 256,
        max_windows: int = MOST_WINDOWS,
    ) -> None:
        if not 0 < fraction < 1:
            raise TrainingError(f"fraction {fraction} of the strokes cannot be held out; it must lie between 0 and 1.")
        self._seed, self._fraction, self._most, self._min_slides = seed, fraction, most, min_slides
        self._window, self._max_windows = window, max_windows
        self._rng = np.random.default_rng(seed)
        self._sources: tuple[Source, ...] = ()
        self._classes: tuple[ClassDef, ...] = ()
        self._entries: list[_Entry] = []
        self._held: list[_Entry] = []
        self._numbers: WeakKeyDictionary[Slide, int] = WeakKeyDictionary()
        self._order: dict[Key, float] = {}
        self._turns: Counter[Key] = Counter()
        self._trained: set[Key] = set()
        self._windows: tuple[Window, ...] | None = None
        self._warnings: tuple[str, ...] = ()

    @property
    def exclude(self) -> dict[int, tuple[Unit, ...]]:
        """The held-out units by index of their source: the `exclude` of a `PatchSampler`."""
        out: dict[int, tuple[Unit, ...]] = {}
        for entry in self._held:
            out[entry.source] = (*out.get(entry.source, ()), entry.unit)
        return out

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources that `update` was given last; `Window.source` is an index into them."""
        return self._sources

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table that `update` was given last."""
        return self._classes

    @property
    def warnings(self) -> tuple[str, ...]:
        """Classes that cannot be scored, and what to do about it."""
        return self._warnings

    @property
    def seen(self) -> int:
        """How many held-out units may have been trained on before."""
        return sum(e.key in self._trained for e in self._held)

    def update(self, sources: Sequence[Source], classes: Sequence[ClassDef]) -> bool:
        """Follow the labels: a held-out unit stays held out while it exists; new strokes are held out before old ones.

        Returns
        -------
        Whether anything is held out now that was trained on until now; features cached of it must be discarded.
        """
        self._remember_trained()
        kept = {e.key for e in self._held}
        self._sources, self._classes = tuple(sources), tuple(classes)
        self._entries = self._list_entries()
        self._choose(kept, prefer_untrained=True)
        return self._recalled(kept)

    def swap(self) -> bool:
        """Send the held-out units to training and hold out others, first those that were held out least often.

        Returns
        -------
        As `update`.
        """
        self._remember_trained()
        before = {e.key for e in self._held}
        self._turns.update(before)
        self._choose(set(), prefer_untrained=False)
        return self._recalled(before)

    def windows(self) -> tuple[Window, ...]:
        """Squares to predict for scoring; the same until the next `update` or `swap`."""
        if self._windows is None:
            self._windows = self._find_windows()
        return self._windows

    def scores(self, scorer: Scorer) -> Scores:
        """Scores of a scorer that all `windows` were added to, with the warnings."""
        return scorer.scores(len(self._held), self.seen, self._warnings)

    def _recalled(self, before: set[Key]) -> bool:
        """Whether anything trained on is held out that was not held out `before`."""
        return any(e.key in self._trained and e.key not in before for e in self._held)

    def _remember_trained(self) -> None:
        held = {e.key for e in self._held}
        self._trained |= {e.key for e in self._entries if e.key not in held}

    def _list_entries(self) -> list[_Entry]:
        """Every slide and every stroke as a candidate, slides first; those of removed strokes are forgotten."""
        slides, strokes = [], []
        known = {e.key: e.unit for e in self._entries}
        for k, source in enumerate(self._sources):
            number = self._numbers.setdefault(source.slide, next(_slide_numbers))
            whole = whole_slide(source)
            if whole.classes:
                slides.append(_Entry(k, whole, (number, whole.key)))
                for unit in units_of(source, self._window):
                    key = (number, unit.key)
                    old = known.get(key)
                    # The same drawing in the same place stays the same object, with its cached mask.
                    if old is not None and old.same_as(unit):
                        unit = old
                    strokes.append(_Entry(k, unit, key))
        entries = slides + strokes
        self._order = {e.key: self._order.get(e.key, float(self._rng.random())) for e in entries}
        return entries

    def _choose(self, kept: set[Key], *, prefer_untrained: bool) -> None:
        whole = [e for e in self._entries if e.unit.stroke is None]
        designated = [e for e in whole if self._sources[e.source].role != "train"]
        self._windows = None
        if designated:
            self._held = designated
        else:
            self._held = []
            if len(whole) >= self._min_slides:
                self._hold(whole, kept, prefer_untrained)
            gone = {e.source for e in self._held}
            strokes = [e for e in self._entries if e.unit.stroke is not None and e.source not in gone]
            self._hold(strokes, kept, prefer_untrained)
        self._warnings = tuple(self._find_warnings(designated=bool(designated)))

    def _hold(self, entries: Sequence[_Entry], kept: set[Key], prefer_untrained: bool) -> None:
        """Hold out the wanted number of `entries` of every class that nothing held out covers yet."""
        covered = {c for e in self._held for c in e.unit.classes}
        scarce = self._scarce(entries)
        ranked = sorted(entries, key=lambda e: (e.key in scarce, *self._rank(e, kept, prefer_untrained)))
        wanted = {c: n for c, n in Counter(c for e in entries for c in e.unit.classes).items() if c not in covered}
        for class_id in sorted(wanted, key=lambda c: (wanted[c], c)):
            members = [e for e in ranked if class_id in e.unit.classes]
            target = min(self._most, max(1, round(self._fraction * len(members)))) if len(members) > 1 else 0
            have = sum(e in self._held for e in members)
            for entry in members:
                if have >= target:
                    break
                if entry not in self._held and self._may_hold(entry, entries):
                    self._held.append(entry)
                    have += 1

    def _scarce(self, entries: Sequence[_Entry]) -> set[Key]:
        """Keys of what is labelled densely, where that is the smaller part."""
        dense = {e.key for e in entries if self._is_dense(e)}
        return dense if 2 * len(dense) < len(entries) else set()

    def _is_dense(self, entry: _Entry) -> bool:
        stroke = entry.unit.stroke
        if stroke is None:
            return bool(self._sources[entry.source].labels.dense_regions)
        return stroke.kind == "dense"

    def _rank(self, entry: _Entry, kept: set[Key], prefer_untrained: bool) -> tuple[bool, bool, int, float]:
        trained = prefer_untrained and entry.key in self._trained
        return entry.key not in kept, trained, self._turns[entry.key], self._order[entry.key]

    def _may_hold(self, entry: _Entry, entries: Sequence[_Entry]) -> bool:
        """Whether a unit still has labels, and each of its classes has others left to train on."""
        if not self._alive(entry, ()):
            return False
        held = [*self._held, entry]
        for class_id in entry.unit.classes:
            others = (e for e in entries if class_id in e.unit.classes and e not in held)
            if not any(self._alive(e, held) for e in others):
                return False
        return True

    def _alive(self, entry: _Entry, held: Sequence[_Entry]) -> bool:
        units = [e.unit for e in held if e.source == entry.source]
        return is_alive(self._sources[entry.source], entry.unit, self._rng, units)

    def _find_warnings(self, *, designated: bool) -> Iterable[str]:
        covered = {c for e in self._held for c in e.unit.classes}
        labelled = {c for e in self._entries for c in e.unit.classes}
        for c in self._classes:
            if c.id in covered or c.id not in labelled:
                continue
            if designated:
                yield f"{c.name} cannot be scored: it is not labelled on the slides held out; label some of it there."
            else:
                yield f"{c.name} cannot be scored: one stroke cannot be both trained on and held out; draw another."

    def _find_windows(self) -> tuple[Window, ...]:
        rng = np.random.default_rng(self._seed)
        exclude = self.exclude
        found: dict[tuple[int, Box], Window] = {}
        queues = {
            c.id: [(e, iter(self._cells(e, rng))) for e in self._held if c.id in e.unit.classes] for c in self._classes
        }
        while any(queues.values()) and len(found) < self._max_windows:
            for class_id, entries in queues.items():
                if not entries or len(found) >= self._max_windows:
                    continue
                entry, cells = entries.pop(0)
                for cell in itertools.islice(cells, _LOOKS):
                    if (entry.source, cell) in found:
                        continue
                    labels = held_labels(self._sources[entry.source], cell, exclude[entry.source])
                    if (labels == class_id).any():
                        found[entry.source, cell] = Window(entry.source, cell, labels)
                        # Back into the queue: a long stroke gives more windows when the others had their turn.
                        entries.append((entry, cells))
                        break
        return tuple(found.values())

    def _cells(self, entry: _Entry, rng: np.random.Generator) -> list[Box]:
        """Squares that may hold labels of a unit, in random order."""
        cells = [
            c
            for c in occupied_cells(self._sources[entry.source], self._window)
            if c.intersection(entry.unit.region).area
        ]
        return [cells[k] for k in rng.permutation(len(cells))]
