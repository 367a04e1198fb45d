"""Clean-up of a predicted label image, block by block: smooth, without holes and specks, touching objects apart.

It goes over the image in stages; each reads the image of the one before and writes its own, so that any block can be
made again after a crash. What was predicted is only read. The result does not depend on the size of the blocks.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from napari_sparseseg.config import MAX_CLASS_ID, ClassDef
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.geometry import Box, tiles
from napari_sparseseg.io.ome_zarr import (
    CHUNK,
    SHARD,
    PredictionStore,
    StoreLayout,
    create_label_image,
    fill_pyramids,
    majority,
    open_levels,
)
from napari_sparseseg.prediction.results.components import BlockGraph, BlockRuns, cleaned_classes
from napari_sparseseg.prediction.results.journal import Journal
from napari_sparseseg.prediction.results.separation import LARGEST, cut_touching
from napari_sparseseg.prediction.results.smoothing import half_widths, majority_within

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

UNSURE = "unsure"
_UNSURE_COLOUR = "#5a5a5a"
_MOST_WORKERS = 4

Read = Callable[[Box], np.ndarray]
"""Class ids, uint8 (h, w), of a region of the image."""


@dataclass(frozen=True, slots=True)
class CleanUp:
    """What to do with a predicted label image, in this order; lengths are level-0 pixels where the mpp is unknown.

    Pixels that were not predicted (0) stay so.

    Raises
    ------
    PredictionError
        For a value outside its range, and where nothing is to be done.

    Examples
    --------
    >>> from napari_sparseseg import CleanUp
    >>> settings = CleanUp(smallest_um2=200, holes_um2=500, smooth_um=2)
    >>> settings.separate
    ()
    """

    unsure_below: float = 0.0
    """Pixels whose most probable class has a lower probability, 0..1, become a class of their own, ``unsure``."""
    smooth_um: float = 0.0
    """Each pixel takes the class that most pixels within this radius have."""
    holes_um2: float = 0.0
    """Holes up to this area get the class around them; a hole is surrounded by one class, not by the image's edge."""
    smallest_um2: float = 0.0
    """Smaller regions take the class with which they share the longest border."""
    separate: tuple[str, ...] = ()
    """Names of classes whose objects are cut at their waists by lines one pixel wide, which get the class around
    them."""
    waist_um: float = 1.0
    """How much narrower, in radius, a waist is than the parts on both sides."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "separate", tuple(self.separate))
        if not 0 <= self.unsure_below <= 1:
            raise PredictionError(f"the probability below which a pixel is unsure is {self.unsure_below}; give 0 to 1.")
        for name in ("smooth_um", "holes_um2", "smallest_um2", "waist_um"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise PredictionError(f"{name} is {value}; give 0 or more.")
        if not (self.unsure_below or self.smooth_um or self.holes_um2 or self.smallest_um2 or self.separate):
            raise PredictionError(
                "no clean-up is asked for; give at least one of: smallest region, holes, smoothing, classes to "
                "separate, a probability below which pixels are unsure."
            )

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return {**asdict(self), "separate": list(self.separate)}

    def classes(self, classes: Iterable[ClassDef]) -> tuple[ClassDef, ...]:
        """The class table of the result: that of the prediction, and ``unsure`` where it is asked for."""
        table = tuple(classes)
        if not self.unsure_below or any(c.name.casefold() == UNSURE for c in table):
            return table
        used = {c.id for c in table}
        free = [k for k in range(1, MAX_CLASS_ID + 1) if k not in used]
        if not free:
            raise PredictionError("there is no class id left for unsure pixels: there are 255 classes.")
        return (*table, ClassDef(min((k for k in free if k > max(used)), default=free[0]), UNSURE, _UNSURE_COLOUR))

    def separated(self, classes: Iterable[ClassDef]) -> list[int]:
        """Ids of the classes to separate.

        Raises
        ------
        PredictionError
            For a name that is none of them.
        """
        ids = {c.name.casefold(): c.id for c in classes}
        for name in self.separate:
            if name.casefold() not in ids:
                raise PredictionError(f"there is no class {name!r} to separate; there are: {', '.join(ids)}.")
        return sorted({ids[name.casefold()] for name in self.separate})

    def check(self, store: PredictionStore) -> None:
        """Raise `PredictionError` where this cannot be done to a stored prediction."""
        self.separated(store.classes)
        if self.unsure_below and not store.probabilities:
            raise PredictionError(
                f"{store.path} has no probabilities, so unsure pixels cannot be told; predict again with probabilities."
            )


class Cleaner:
    """Cleans one stored prediction in a working folder; a cleaner that was interrupted goes on where it was.

    Parameters
    ----------
    store
        The prediction; it is read only.
    settings
        What to do.
    folder
        Working folder; what is in it of another clean-up is discarded, and removing it afterwards is the caller's.
    name
        Of the label image.
    block
        Side of the blocks in pixels; it affects time and memory only.
    largest
        See `separation`.
    workers
        Threads; None: one for each core, at most 4. Each needs some 150 MB.
    """

    def __init__(
        self,
        store: PredictionStore,
        settings: CleanUp,
        folder: Path,
        *,
        name: str = "cleaned",
        block: int = SHARD,
        largest: int = LARGEST,
        workers: int | None = None,
    ) -> None:
        settings.check(store)
        self._store, self._settings, self._folder = store, settings, folder
        self._largest = largest
        apart = block % SHARD == 0  # else two blocks may be of one file, which is written whole
        self._workers = (workers or min(cores(), _MOST_WORKERS)) if apart else 1
        self._placement = store.placement
        self._classes = settings.classes(store.classes)
        self._whole = Box(0, 0, *store.shape)
        self._blocks = [b.intersection(self._whole) for b in tiles(self._whole, block)]
        self._columns = -(-store.shape[1] // block)
        self._layout = StoreLayout(store.shape, self._placement, self._classes, version=store.version)
        self._name = name
        self.record = {"source": "classes", "clean_up": settings.to_json(), "prediction": store.record}
        self._header = {"record": self.record, "block": block, "largest": largest}

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of the result."""
        return self._classes

    @property
    def image(self) -> Path:
        """The label image, once it is made."""
        return self._folder / "image"

    def run(self, on_block: Callable[[int, int], None]) -> list[zarr.Array]:
        """Make the label image with its pyramid; its levels.

        Parameters
        ----------
        on_block
            Called with blocks done and blocks in all; what it raises ends the run.
        """
        journal = self._journal()
        stages = self._stages()
        passes = sum(2 if stage is self._merged else 1 for stage in stages)
        done, total = 0, passes * len(self._blocks)

        def tick() -> None:
            nonlocal done
            done += 1
            on_block(done, total)

        levels = open_levels(self.image)
        read: Read = self._predicted
        for number, stage in enumerate(stages):
            target = levels[0] if number == len(stages) - 1 else self._scratch(number)
            todo = [k for k in range(len(self._blocks)) if number * len(self._blocks) + k not in journal.done]
            make = stage(read, tick, bool(todo))

            def write(k: int, target: zarr.Array = target, make: Callable[[int], np.ndarray] = make) -> None:
                target[self._blocks[k].slices()] = make(k)

            def note(k: int, number: int = number) -> None:
                journal.shard_done(number * len(self._blocks) + k)
                tick()

            for _ in range(len(self._blocks) - len(todo)):
                tick()
            self._each(todo, write, note)
            read = _reader(target)
        fill_pyramids([(levels, majority)])
        return levels

    def _each(self, blocks: list[int], work: Callable[[int], object], on_done: Callable[[int], None]) -> None:
        """Do work for blocks in threads, `on_done` here; an error of either ends it after the blocks in progress."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="clean") as pool:
            waiting = {pool.submit(work, k): k for k in blocks}
            try:
                for future in as_completed(waiting):
                    future.result()
                    on_done(waiting[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _journal(self) -> Journal:
        """That of an interrupted run of the same kind, or a new one."""
        journal = Journal(self._folder / "clean.jsonl")
        if journal.header == self._header and self.image.exists():
            return journal
        if self._folder.exists():
            shutil.rmtree(self._folder)
        (self._folder / "graphs").mkdir(parents=True)
        create_label_image(self.image, self._layout, self._name, self.record)
        journal.begin(self._header)
        return journal

    def _stages(self) -> list[Callable[[Read, Callable[[], None], bool], Callable[[int], np.ndarray]]]:
        s = self._settings
        chosen = (
            (s.smooth_um, self._smoothed), (s.holes_um2 or s.smallest_um2, self._merged), (s.separate, self._apart),
        )  # fmt: skip
        return [stage for wanted, stage in chosen if wanted] or [self._copied]

    def _scratch(self, number: int) -> zarr.Array:
        path = self._folder / f"stage-{number}"
        if path.exists():
            return zarr.open_array(str(path), mode="r+")
        return zarr.create_array(
            str(path), shape=self._store.shape, chunks=(CHUNK, CHUNK), dtype="uint8", fill_value=0,
            compressors=None,
        )  # fmt: skip

    def _predicted(self, region: Box) -> np.ndarray:
        """The prediction, its unsure pixels marked."""
        labels: np.ndarray = self._store.labels[0][region.slices()]
        if self._settings.unsure_below:
            stored = self._store.probabilities[0]
            best = np.zeros_like(labels)
            for channel in range(stored.shape[0]):
                np.maximum(best, stored[(channel, *region.slices())], out=best)
            unsure = next(c.id for c in self._classes if c.name.casefold() == UNSURE)
            labels = np.where((best < self._settings.unsure_below * 255) & (labels > 0), np.uint8(unsure), labels)
        return labels

    def _copied(self, read: Read, tick: Callable[[], None], needed: bool) -> Callable[[int], np.ndarray]:
        return lambda k: read(self._blocks[k])

    def _smoothed(self, read: Read, tick: Callable[[], None], needed: bool) -> Callable[[int], np.ndarray]:
        widths = half_widths(self._settings.smooth_um, self._placement.spacing)
        rows, columns = len(widths) // 2, int(widths.max())

        def smooth(k: int) -> np.ndarray:
            y, x, h, w = self._blocks[k]
            wanted = Box(y - rows, x - columns, h + 2 * rows, w + 2 * columns)
            there = wanted.intersection(self._whole)
            window = np.zeros((wanted.height, wanted.width), np.uint8)
            inside = Box(there.y - wanted.y, there.x - wanted.x, there.height, there.width)
            window[inside.slices()] = read(there)
            return majority_within(window, widths)

        return smooth

    def _merged(self, read: Read, tick: Callable[[], None], needed: bool) -> Callable[[int], np.ndarray]:
        files = [self._folder / "graphs" / f"{k}.npz" for k in range(len(self._blocks))]
        todo = [k for k, file in enumerate(files) if needed and not file.exists()]
        for _ in range(len(files) - len(todo)):
            tick()
        self._each(todo, lambda k: write_atomic(files[k], BlockGraph.of(read(self._blocks[k])).save), lambda k: tick())
        area = self._placement.pixel_area
        holes, smallest = self._settings.holes_um2 / area + 1e-9, self._settings.smallest_um2 / area - 1e-9
        graphs = [BlockGraph.load(file) for file in files] if needed else []
        classes = cleaned_classes(graphs, self._columns, holes, smallest) if needed else []

        def merge(k: int) -> np.ndarray:
            return BlockRuns.of(read(self._blocks[k])).painted(classes[k], self._blocks[k].width)

        return merge

    def _apart(self, read: Read, tick: Callable[[], None], needed: bool) -> Callable[[int], np.ndarray]:
        ids = self._settings.separated(self._classes)
        height, width = self._store.shape

        def cut(k: int) -> np.ndarray:
            block = self._blocks[k]
            window = block.grown(self._largest + 1).intersection(self._whole)
            inner = Box(block.y - window.y, block.x - window.x, block.height, block.width)
            return cut_touching(
                read(window), inner, (window.y > 0, window.y1 < height, window.x > 0, window.x1 < width), ids,
                depth=self._settings.waist_um, spacing=self._placement.spacing, largest=self._largest,
            )  # fmt: skip

        return cut


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reader(array: zarr.Array) -> Read:
    def read(region: Box) -> np.ndarray:
        labels: np.ndarray = array[region.slices()]
        return labels

    return read
