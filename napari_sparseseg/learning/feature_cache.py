"""Features of everything that is labelled, cached from stroke to stroke.

The frame of each slide is cut into cells. A cell with labels is read once, with a margin, and encoded; its maps stay
cached as long as memory allows, so that a stroke within a known cell costs only the sampling of its pixels. The head is
fitted on `LabelledFeatures`: at most `MOST_ROWS` labelled pixels per cell and class, weighted to stand for all.

Neither memory nor the time per stroke grows with what was drawn before: pixels are thinned out when they take more than
`CacheSettings.row_bytes`, and only cells whose labels may have changed are read again.
"""

from __future__ import annotations

import logging
import time
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cachetools import LRUCache

from napari_sparseseg.annotations.packing import pack, unpack
from napari_sparseseg.balancing import weight_table
from napari_sparseseg.config import MAX_CLASS_ID
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.features import sample
from napari_sparseseg.learning.head import Samples
from napari_sparseseg.learning.sources import changed_cells, occupied_cells
from napari_sparseseg.learning.torch_runtime import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations.snapshot import Snapshot
    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.learning.features import FeatureMaps, InputScale
    from napari_sparseseg.learning.sources import Source

logger = logging.getLogger(__name__)

CELL = 256
"""Side of a cell in frame pixels."""
MARGIN = 64
"""Frame pixels read around a cell, so that features near its sides know what lies beyond."""
MOST_ROWS = 400
"""Per cell and class; neighbouring pixels of a stroke are nearly the same."""

CellKey = tuple[str, tuple[float, float], Box]


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How much memory the cache may take."""

    row_bytes: int = 256 * 2**20
    """Of all labelled features: about 1,000 cells with `MOST_ROWS` of one class each; beyond, each cell has fewer."""
    map_bytes: int = 512 * 2**20
    """Of the encoder's maps."""


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Features of the labelled pixels of one patch, one row per pixel.

    Attributes
    ----------
    features
        float16 (n, F).
    labels
        uint8 (n,), class ids.
    ys, xs
        int64 (n,), frame pixels within the patch; empty for pixels of slides that are not open.
    counts
        int64 (256,): *all* labelled pixels of the patch by class id.
    """

    features: torch.Tensor
    labels: NDArray[np.uint8]
    ys: NDArray[np.int64]
    xs: NDArray[np.int64]
    counts: NDArray[np.int64]
    slide: str = ""
    """Fingerprint of the slide."""

    def without(self, hidden: NDArray[np.bool_]) -> LabelledFeatures:
        """Only the pixels where `hidden` (h, w), a mask of the patch, is False; counts are scaled accordingly."""
        keep = ~hidden[self.ys, self.xs]
        if keep.all():
            return self
        before = np.bincount(self.labels, minlength=MAX_CLASS_ID + 1)
        after = np.bincount(self.labels[keep], minlength=MAX_CLASS_ID + 1)
        counts = np.where(before > 0, np.ceil(self.counts * after / np.maximum(before, 1)), 0).astype(np.int64)
        return replace(self._at(keep), counts=counts)

    def thinned(self, most: int, rng: np.random.Generator) -> LabelledFeatures:
        """At most `most` pixels of each class; those that stay stand for more."""
        picked = [rng.permutation(np.flatnonzero(self.labels == c))[:most] for c in np.unique(self.labels)]
        return self._at(np.concatenate(picked))

    def without_places(self) -> LabelledFeatures:
        """The same for labels that cannot change any more: pixels of slides that are not open."""
        nowhere = np.empty(0, np.int64)
        return replace(self, ys=nowhere, xs=nowhere)

    def _at(self, keep: NDArray[Any]) -> LabelledFeatures:
        """Those at these indices, or where a mask is True."""
        known = self.without_places() if not len(self.ys) else replace(self, ys=self.ys[keep], xs=self.xs[keep])
        return replace(known, features=self.features[torch.from_numpy(keep)], labels=self.labels[keep])


@dataclass(slots=True)
class _Cell:
    source: Source
    region: Box
    packed: bytes
    """Its labels, see `annotations.packing`: as they are they would take as much memory as the rows."""
    classes: frozenset[int]
    rows: LabelledFeatures | None = None
    touched: int = 0
    """Annotation version at which its labels changed last: the newest are encoded first."""


class FeatureCache:
    """Labelled features of all cells of the training sources.

    Parameters
    ----------
    features
        Gives the maps; on the device where they are computed.
    scale
        Of the input.
    settings
        Memory limits.

    Attributes
    ----------
    maps : LRUCache
        The encoder's maps of the cells that were used last.
    row_bytes : int
        Memory that all labelled features take.
    """

    def __init__(self, features: FeatureMaps, scale: InputScale, settings: CacheSettings | None = None) -> None:
        self.features, self.scale, self.settings = features, scale, settings or CacheSettings()
        self.device = next(features.parameters()).device
        self.maps: LRUCache[CellKey, list[torch.Tensor]] = LRUCache(
            self.settings.map_bytes, getsizeof=lambda maps: sum(m.nbytes for m in maps)
        )
        self.row_bytes = 0
        self._cells: dict[CellKey, _Cell] = {}
        self._most = MOST_ROWS
        self._seen: dict[tuple[str, tuple[float, float]], Snapshot | None] = {}

    @property
    def cells(self) -> dict[CellKey, frozenset[int]]:
        """The labelled cells with the ids of the classes in them."""
        return {key: cell.classes for key, cell in self._cells.items()}

    def set_sources(self, sources: Sequence[Source]) -> bool:
        """Find the cells with labels; nothing is encoded yet. Whether any label was erased or changed."""
        before, self._cells = self._cells, {}
        seen: dict[tuple[str, tuple[float, float]], Snapshot | None] = {}
        for source in sources:
            slide = (source.slide.fingerprint, source.frame.downsample)
            self._cells |= self._look(source, before, None if slide in seen else self._seen.get(slide))
            # Of two copies of a slide the second counts; then it is not known what changed.
            seen[slide] = None if slide in seen else source.labels
        self._seen = seen
        self.row_bytes = sum(cell.rows.features.nbytes for cell in self._cells.values() if cell.rows is not None)
        return any(_lost_any(old, self._cells.get(key)) for key, old in before.items())

    def _look(self, source: Source, known: dict[CellKey, _Cell], last: Snapshot | None) -> dict[CellKey, _Cell]:
        """Cells of a source row by row, those `known` where they are the same; `last`: the labels read before."""
        changed = None if last is None else changed_cells(last, source.labels, source.frame, CELL)
        own = self.key(source, Box(0, 0, CELL, CELL))[:2]
        cells: dict[CellKey, _Cell] = {}
        if changed is not None:
            cells = {k: c for k, c in known.items() if k[:2] == own and k[2] not in changed}
            for cell in cells.values():
                cell.source = source
        for region in occupied_cells(source, CELL) if changed is None else changed:
            labels = source.read_labels(region)
            if labels.any():
                key, packed = self.key(source, region), pack(labels)
                old = known.get(key)
                if old is None or old.packed != packed:
                    classes = frozenset(np.unique(labels).tolist()) - {0}
                    old = _Cell(source, region, packed, classes, touched=source.labels.version)
                old.source = source
                cells[key] = old
        return dict(sorted(cells.items(), key=lambda item: (item[0][2].y, item[0][2].x)))

    @staticmethod
    def key(source: Source, region: Box) -> CellKey:
        """Identifies a cell: slide, resolution, place."""
        return (source.slide.fingerprint, source.frame.downsample, region)

    def knows(self, source: Source, region: Box) -> bool:
        """Whether this is a labelled cell that has been encoded."""
        cell = self._cells.get(self.key(source, region))
        return cell is not None and cell.rows is not None

    @property
    def pending(self) -> int:
        """Number of labelled cells that have not been encoded yet."""
        return sum(cell.rows is None for cell in self._cells.values())

    def encode(self, seconds: float = float("inf")) -> int:
        """Encode pending cells, newest first, each class once before any class twice.

        Parameters
        ----------
        seconds
            No further cell is begun after this time, but every class gets at least one cell.

        Returns
        -------
        Number of cells that are still pending.
        """
        started = time.monotonic()
        seen = {c for cell in self._cells.values() if cell.rows is not None for c in cell.classes}
        queue = sorted(
            ((k, c) for k, c in self._cells.items() if c.rows is None), key=lambda item: item[1].touched, reverse=True
        )
        late: list[tuple[CellKey, _Cell]] = []
        for key, cell in queue:
            if cell.classes <= seen:
                late.append((key, cell))
                continue
            self._make_rows(key, cell)
            seen |= cell.classes
        for done, (key, cell) in enumerate(late):
            if time.monotonic() - started > seconds:
                return len(late) - done
            self._make_rows(key, cell)
        return 0

    def rows(self, hide: Callable[[Source, Box], NDArray[np.bool_] | None] | None = None) -> list[LabelledFeatures]:
        """Features of every encoded cell, without the pixels that `hide(source, region)` marks (held-out strokes)."""
        out = []
        for cell in self._cells.values():
            if cell.rows is None:
                continue
            hidden = hide(cell.source, cell.region) if hide is not None else None
            rows = cell.rows if hidden is None else cell.rows.without(hidden)
            if len(rows.labels):
                out.append(rows)
        return out

    def _make_rows(self, key: CellKey, cell: _Cell) -> None:
        maps = self.maps_for(cell.source, cell.region)
        rng = np.random.default_rng(zlib.crc32(repr(key[2]).encode()))
        rows = labelled_features(maps, self.features.strides, unpack(cell.packed), rng, offset=MARGIN, most=self._most)
        cell.rows = replace(rows, slide=key[0])
        self.row_bytes += rows.features.nbytes
        while self.row_bytes > self.settings.row_bytes and self._most > 1:
            self._most //= 2
            self._thin_out()

    def _thin_out(self) -> None:
        self.row_bytes = 0
        for number, cell in enumerate(self._cells.values()):
            if cell.rows is not None:
                cell.rows = cell.rows.thinned(self._most, np.random.default_rng([number, self._most]))
                self.row_bytes += cell.rows.features.nbytes

    def maps_for(self, source: Source, region: Box) -> list[torch.Tensor]:
        """Maps (1, C_i, h_i, w_i), float16, of a cell with `MARGIN` around it; from memory where they are cached."""
        key = self.key(source, region)
        maps = self.maps.get(key)
        if maps is None:
            pixels = source.read_pixels(region.grown(MARGIN))
            maps = [m.half() for m in self.encode_patches(pixels[None])]
            if self.maps.getsizeof(maps) <= self.maps.maxsize:
                self.maps[key] = maps
        return maps

    def maps_by(self, features: FeatureMaps, source: Source, region: Box) -> list[torch.Tensor]:
        """The same by other features, uncached: those of a tuned encoder change with every step."""
        return self.encode_patches(source.read_pixels(region.grown(MARGIN))[None], features)

    def encode_patches(self, pixels: NDArray[Any], features: FeatureMaps | None = None) -> list[torch.Tensor]:
        """Maps of patches (B, h, w, C) with sides that are multiples of the largest stride, on the device."""
        image = self.scale.unit(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
        features = features or self.features
        maps: list[torch.Tensor]
        with torch.inference_mode():
            try:
                maps = features(image)
            except (RuntimeError, MemoryError) as error:
                if not (out_of_memory(error) and self.maps):
                    raise
                self._free_maps()
                maps = features(image)
        return maps

    def _free_maps(self) -> None:
        logger.warning("memory ran out: the cached feature maps are freed")
        self.maps.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _lost_any(before: _Cell, after: _Cell | None) -> bool:
    """Whether a label of a cell was erased or changed."""
    if after is None or before.packed == after.packed:
        return after is None
    old = unpack(before.packed)
    return bool(((old > 0) & (old != unpack(after.packed))).any())


class Parts:
    """Several tensors indexed as one, copying only the rows asked for."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = tuple(parts)
        self._ends = torch.tensor([len(p) for p in parts]).cumsum(0)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Rows (len(index), F), in any order."""
        wanted, where = torch.unique(index, return_inverse=True)
        out = torch.empty(len(wanted), self._parts[0].shape[1], dtype=self._parts[0].dtype)
        first = start = 0
        for part, end, stop in zip(
            self._parts, self._ends.tolist(), torch.searchsorted(wanted, self._ends).tolist(), strict=True
        ):
            if stop > start:
                out[start:stop] = part[wanted[start:stop] - first]
            first, start = end, stop
        return out[where]


def labelled_features(
    maps: Sequence[torch.Tensor],
    strides: Sequence[int],
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    patch: int = 0,
    offset: int = 0,
    most: int = MOST_ROWS,
) -> LabelledFeatures:
    """Features of the labelled pixels of one patch.

    Parameters
    ----------
    maps, strides
        As from `FeatureMaps`.
    labels
        uint8 (h, w), 0 = unlabelled; pixel (0, 0) lies `offset` pixels inside the image of the maps.
    rng
        Chooses pixels where a class has more than `most`.
    patch
        Index of the patch in the maps.
    """
    flat = np.flatnonzero(labels)
    ids = labels.ravel()[flat]
    counts = np.bincount(ids, minlength=MAX_CLASS_ID + 1)
    chosen = [
        flat[ids == c] if counts[c] <= most else rng.choice(flat[ids == c], most, replace=False)
        for c in np.flatnonzero(counts)
    ]
    pixels = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    ys, xs = np.divmod(pixels, labels.shape[1])
    at = torch.from_numpy(ys + offset), torch.from_numpy(xs + offset)
    features = sample(maps, strides, *at, patch).half().cpu()
    return LabelledFeatures(features, labels[ys, xs], ys, xs, counts)


def join(rows: Sequence[LabelledFeatures], ids: Sequence[int], config: TrainConfig) -> Samples:
    """Features of all patches with the balanced weight of every pixel, for `fit_head`.

    A chosen pixel stands for all of its class in its patch: its weight is the patch's weight of one pixel times the
    number of labelled pixels per chosen pixel.

    Parameters
    ----------
    rows
        Per patch.
    ids
        Class ids in channel order; pixels of other classes are left out.
    config
        Balancing and floor.
    """
    lookup = np.full(MAX_CLASS_ID + 1, -1)
    lookup[list(ids)] = np.arange(len(ids))
    counts = np.stack([r.counts for r in rows]) * (lookup >= 0)
    table = weight_table(counts, config.balancing, min_pixels=config.min_pixels)
    weights, channels = [], []
    for one, total, per_pixel in zip(rows, counts, table, strict=True):
        kept = np.bincount(one.labels, minlength=MAX_CLASS_ID + 1)
        weights.append((per_pixel * total / np.maximum(kept, 1))[one.labels])
        channels.append(lookup[one.labels])
    known = [c >= 0 for c in channels]
    parts = [r.features if k.all() else r.features[torch.from_numpy(k)] for r, k in zip(rows, known, strict=True)]
    kept = np.concatenate(known)
    channel = torch.from_numpy(np.concatenate(channels)[kept])
    return Samples(Parts(parts), channel, torch.from_numpy(np.concatenate(weights)[kept].astype(np.float32)))
