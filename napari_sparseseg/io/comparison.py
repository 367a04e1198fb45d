"""Two label images of one slide, or a label image and annotations, counted against each other pixel by pixel."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box, Frame, Placement, tiles
from napari_sparseseg.io.measurements import WHOLE_SLIDE, PixelOutline, plain_cell
from napari_sparseseg.io.ome_zarr import SHARD, PredictionStore, StoreLayout, create_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import shapely

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.io.results import StoredResult

ALL = "all classes"
OTHER = "other differences"


class Reader(Protocol):
    """One of the two sides of a comparison."""

    name: str
    classes: tuple[ClassDef, ...]

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Class ids uint8 (h, w) under the centres of the pixels of a region of `frame`; 0 outside."""


class ResultReader:
    """A label image, read at any resolution.

    Parameters
    ----------
    result
        From `open_result`.
    """

    def __init__(self, result: StoredResult) -> None:
        self.name, self.classes, self._result = result.path.name, result.classes, result

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Class ids uint8 (h, w) of the pixels under the centres of those of a region of `frame`; 0 outside."""
        index = []
        starts = (region.y, region.x)
        sides = (region.height, region.width)
        per_pixel = zip(frame.downsample, self._result.placement.frame.downsample, strict=True)
        for start, side, (asked, own) in zip(starts, sides, per_pixel, strict=True):
            index.append(np.floor((np.arange(start, start + side) + 0.5) * (asked / own) + 1e-9).astype(np.int64))
        labels = np.zeros(sides, np.uint8)
        inside = [(i >= 0) & (i < n) for i, n in zip(index, self._result.shape, strict=True)]
        if not (inside[0].any() and inside[1].any()):
            return labels
        rows, columns = index[0][inside[0]], index[1][inside[1]]
        block = self._result.read(Box(rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
        labels[np.ix_(*inside)] = block[np.ix_(rows - rows[0], columns - columns[0])]
        return labels


class LabelReader:
    """Labels in memory as one side of a comparison, on the pixels that are compared.

    Parameters
    ----------
    name, classes
        What they are, and what their ids mean.
    labels
        uint8 (h, w) class ids.
    """

    def __init__(self, name: str, classes: tuple[ClassDef, ...], labels: np.ndarray) -> None:
        self.name, self.classes, self._labels = name, classes, labels

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Class ids uint8 (h, w) of a region of the labels."""
        return self._labels[region.slices()]


class AnnotationReader:
    """Annotations as one side of a comparison: scribbles, and the rest classes of dense regions.

    Parameters
    ----------
    annotations
        Of the slide.
    name
        Of their file.
    """

    def __init__(self, annotations: Annotations, name: str) -> None:
        self._snapshot = annotations.snapshot()
        self.name, self.classes = name, self._snapshot.classes

    def read_region(self, region: Box, frame: Frame) -> np.ndarray:
        """Class ids uint8 (h, w) under the centres of the pixels of a region of `frame`."""
        labels: np.ndarray = self._snapshot.read_region(region, frame)
        return labels


@dataclass(frozen=True)
class Agreement:
    """How far two sides agree, in pixels of the coarser one.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_sparseseg.config import make_classes
    >>> from napari_sparseseg.io.comparison import Agreement
    >>> counts = np.array([[0, 0, 0], [5, 40, 10], [0, 5, 45]])  # row: class of the first, column: of the second
    >>> found = Agreement(("a", "b"), tuple(make_classes(["tumour", "stroma"])), {"slide": counts}, 1.0, "um")
    >>> round(found.agreement("slide"), 2), round(found.kappa("slide"), 2), found.dice("slide").round(3).tolist()
    (0.85, 0.7, [0.842, 0.857])
    """

    names: tuple[str, str]
    classes: tuple[ClassDef, ...]
    """Those of both sides, matched by name in any case; ids are 1, 2, ..."""
    counts: dict[str, np.ndarray]
    """int64 (K + 1, K + 1) by region: row = class of the first side, column = of the second; 0 is unlabelled."""
    pixel_area: float
    unit: str
    """``um`` or ``px``; the unit of the pixel area, squared."""

    def compared(self, region: str) -> int:
        """Pixels that both sides label."""
        return int(self.counts[region][1:, 1:].sum())

    def dice(self, region: str) -> np.ndarray:
        """Dice of each class over the pixels that both sides label, float64 (K,); NaN where neither side has it."""
        both = self.counts[region][1:, 1:].astype(np.float64)
        total = both.sum(0) + both.sum(1)
        dice = np.full(len(both), np.nan)
        np.divide(2 * np.diagonal(both), total, out=dice, where=total > 0)
        return dice

    def agreement(self, region: str) -> float:
        """Share of the compared pixels that have the same class; NaN without any."""
        both = self.counts[region][1:, 1:]
        return float(np.trace(both) / both.sum()) if both.any() else float("nan")

    def kappa(self, region: str) -> float:
        """Cohen's kappa: agreement beyond chance, 1 at most; NaN where chance alone would agree everywhere."""
        both = self.counts[region][1:, 1:].astype(np.float64)
        n = both.sum()
        chance = float((both.sum(0) * both.sum(1)).sum() / n**2) if n else 1.0
        return (self.agreement(region) - chance) / (1 - chance) if chance < 1 else float("nan")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table: a row for each region and class, and one for all classes together; NaN is None."""
        for region, counts in self.counts.items():
            both = counts[1:, 1:]
            for k, (c, dice) in enumerate(zip(self.classes, self.dice(region), strict=True)):
                row = {"region": region, "class": c.name, "pixels_a": int(both[k].sum())}
                row |= {"pixels_b": int(both[:, k].sum()), "pixels_both": int(both[k, k]), "dice": _number(dice)}
                yield row | {"agreement": None, "kappa": None}
            mean = self.dice(region)
            mean_dice = float(mean[~np.isnan(mean)].mean()) if not np.isnan(mean).all() else float("nan")
            n = self.compared(region)
            whole = {"region": region, "class": ALL, "pixels_a": n, "pixels_b": n, "pixels_both": int(np.trace(both))}
            whole |= {"dice": _number(mean_dice), "agreement": _number(self.agreement(region))}
            yield whole | {"kappa": _number(self.kappa(region))}

    def to_json(self) -> dict[str, Any]:
        """All numbers as values that JSON can hold."""
        regions = {}
        for name, counts in self.counts.items():
            regions[name] = {
                "compared": self.compared(name),
                "only_a": int(counts[1:, 0].sum()),
                "only_b": int(counts[0, 1:].sum()),
                "agreement": _number(self.agreement(name)),
                "kappa": _number(self.kappa(name)),
                "dice": {c.name: _number(v) for c, v in zip(self.classes, self.dice(name), strict=True)},
                "confusion": counts.tolist(),
            }
        pixel = {f"pixel_area_{self.unit}2": self.pixel_area}
        return {
            "a": self.names[0],
            "b": self.names[1],
            "classes": [c.name for c in self.classes],
            **pixel,
            "regions": regions,
        }

    def write_csv(self, path: Path) -> None:
        """Write the table, safe to open in a spreadsheet."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for k, row in enumerate(self.rows()):
                if k == 0:
                    writer.writerow(row)
                writer.writerow([plain_cell(v) if isinstance(v, str) else v for v in row.values()])


@dataclass(frozen=True)
class Pair:
    """Two sides on the pixel grid where they are compared."""

    a: Reader
    b: Reader
    placement: Placement
    shape: tuple[int, int]

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The classes of both, matched by name in any case, with ids 1, 2, ...

        Raises
        ------
        PredictionError
            Where they have no name in common, or more than 255 together.
        """
        found: dict[str, ClassDef] = {}
        for c in (*self.a.classes, *self.b.classes):
            found.setdefault(c.name.casefold(), c)
        sides = [{c.name.casefold() for c in side.classes} for side in (self.a, self.b)]
        if not sides[0] & sides[1]:
            names = (", ".join(c.name for c in side.classes) or "none" for side in (self.a, self.b))
            raise PredictionError(
                f"{self.a.name} and {self.b.name} have no class in common: {' / '.join(names)}. Classes are matched by "
                "name; rename them."
            )
        if len(found) > MAX_CLASS_ID:
            raise PredictionError(f"both together have {len(found)} classes; 255 can be compared.")
        return tuple(ClassDef(k, c.name, c.colour) for k, c in enumerate(found.values(), 1))

    def blocks(self) -> Iterator[tuple[Box, np.ndarray, np.ndarray]]:
        """Every block with the class of both sides in the ids of `classes`."""
        tables = [self._table(side) for side in (self.a, self.b)]
        whole = Box(0, 0, *self.shape)
        for box in tiles(whole, SHARD):
            block = box.intersection(whole)
            a, b = (side.read_region(block, self.placement.frame) for side in (self.a, self.b))
            yield block, tables[0][a], tables[1][b]

    def _table(self, side: Reader) -> np.ndarray:
        ids = {c.name.casefold(): c.id for c in self.classes}
        table = np.zeros(MAX_CLASS_ID + 1, np.uint8)
        for c in side.classes:
            table[c.id] = ids[c.name.casefold()]
        return table


def compare(pair: Pair, regions: Mapping[str, shapely.Geometry]) -> Agreement:
    """Count both sides against each other, block by block.

    Parameters
    ----------
    pair
        The two sides.
    regions
        Polygons in level-0 (x, y) by name, counted apart, besides the whole slide.
    """
    n = len(pair.classes) + 1
    outlines = {name: PixelOutline(polygon, pair.placement) for name, polygon in regions.items()}
    counts = {name: np.zeros((n, n), np.int64) for name in (WHOLE_SLIDE, *outlines)}
    for block, a, b in pair.blocks():
        joint = a.astype(np.intp) * n + b
        counts[WHOLE_SLIDE] += np.bincount(joint.ravel(), minlength=n * n).reshape(n, n)
        for name, outline in outlines.items():
            inside = joint[outline.mask(block)]
            counts[name] += np.bincount(inside, minlength=n * n).reshape(n, n)
    unit = "um" if pair.placement.mpp else "px"
    return Agreement((pair.a.name, pair.b.name), pair.classes, counts, pair.placement.pixel_area, unit)


def write_difference(path: Path, pair: Pair, found: Agreement, record: dict[str, Any]) -> None:
    """Write where both sides differ as OME-Zarr labels; a class is a pair of classes, such as ``tumour > stroma``.

    With more than 254 such pairs the rarest are one class. An existing folder is replaced once the new one is whole.
    """
    table, classes = difference_table(pair.classes, found.counts[WHOLE_SLIDE])
    part = path.with_name(f".{path.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        create_store(part, StoreLayout(pair.shape, pair.placement, classes, name="difference"), record)
        store = PredictionStore(part)
        for block, a, b in pair.blocks():
            store.write(block, table[a, b], None)
        store.build_pyramid()
        if path.exists():
            old = path.with_name(f".{path.name}.replaced")
            path.replace(old)
            part.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def difference_table(classes: tuple[ClassDef, ...], counts: np.ndarray) -> tuple[np.ndarray, tuple[ClassDef, ...]]:
    """How to label where two sides differ: a class for each pair of classes, such as ``tumour > stroma``.

    Parameters
    ----------
    classes
        K classes with ids 1 to K, of both sides.
    counts
        int64 (K + 1, K + 1), as in `Agreement.counts`.

    Returns
    -------
    table, classes
        uint8 (K + 1, K + 1): the id by class of the first and of the second side, 0 where they agree or one has none;
        and the classes. With more than 254 pairs the rarest are one class.
    """
    both = counts[1:, 1:]
    differing = [(int(both[i, j]), i, j) for i, j in np.argwhere(both) if i != j]
    differing.sort(key=lambda item: (-item[0], item[1], item[2]))
    table = np.zeros((len(classes) + 1,) * 2, np.uint8)
    named = []
    for k, (_, i, j) in enumerate(differing, 1):
        table[i + 1, j + 1] = min(k, MAX_CLASS_ID)
        if k < MAX_CLASS_ID:
            first, second = classes[i], classes[j]
            named.append(ClassDef(k, f"{first.name[:200]} > {second.name[:200]}", second.colour))
    if len(differing) >= MAX_CLASS_ID:
        named.append(ClassDef(MAX_CLASS_ID, OTHER, PALETTE[6]))
    return table, tuple(named)


def common_grid(a: StoredResult, b: StoredResult) -> tuple[Placement, tuple[int, int]]:
    """The grid of the coarser of two label images.

    Raises
    ------
    PredictionError
        Where they are not of the same slide.
    """
    slides = {r.record["slide"] for r in (a, b) if "slide" in r.record}
    if len(slides) == 2:
        raise PredictionError(f"{a.path} and {b.path} were made of different slides; compare results of one slide.")
    for mine, other, da, db in zip(a.shape, b.shape, *(r.placement.frame.downsample for r in (a, b)), strict=True):
        if abs(mine * da - other * db) > max(da, db) + 1:
            raise PredictionError(
                f"{a.path} and {b.path} cover areas of different size, {_size(a)} and {_size(b)}; compare results of "
                "one slide, or name the slide (--slide)."
            )
    coarser = max((a, b), key=lambda r: sum(r.placement.frame.downsample))
    mpp = a.placement.mpp or b.placement.mpp
    return Placement(coarser.placement.frame, mpp), coarser.shape


def _size(result: StoredResult) -> str:
    return " x ".join(f"{n:,}" for n in result.slide_shape) + " px"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
