"""Predictions as OME-Zarr label images with a pyramid, written block by block.

Layout: the arrays are in ``labels/classes/0..n`` with ``image-label`` metadata (colours, names), where label readers
look; the root's own ``multiscales`` points at the same arrays, so that readers that know only images open them too.
Uncertainty is a separate image in ``uncertainty/0..n``, probabilities are one in ``probabilities/0..n`` with a channel
per class, and cleaned label images are in ``labels/NAME``. Specification: https://ngff.openmicroscopy.org/0.4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numcodecs
import numpy as np
import zarr

from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import PredictionError, SparseSegError
from napari_sparseseg.geometry import Box, Frame, Placement, tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


Version = Literal["0.4", "0.5"]
CHUNK = 512
SHARD = 2048
"""Side of the block that one task writes; a multiple of the chunk, and the shard size of version 0.5."""
RECORD = "napari_sparseseg"
"""Attribute of the root with the parameters of the prediction."""
_COARSEST = 256
_LABELS, _UNCERTAINTY, _PROBABILITIES = "labels/classes", "uncertainty", "probabilities"


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """Shape, scale and contents of a store."""

    shape: tuple[int, int]
    placement: Placement
    classes: tuple[ClassDef, ...]
    uncertainty: bool = False
    probabilities: bool = False
    version: Version = "0.4"
    name: str = "prediction"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of all pyramid levels, each half of the one before, rounded up, down to the size of a thumbnail."""
        shapes = [self.shape]
        while max(shapes[-1]) > _COARSEST:
            h, w = shapes[-1]
            shapes.append((-(-h // 2), -(-w // 2)))
        return shapes


def create_store(path: Path, layout: StoreLayout, record: dict[str, Any]) -> None:
    """Make an OME-Zarr with empty pyramids; `record` is saved as the root's attribute `RECORD`.

    Raises
    ------
    PredictionError
        Where the folder cannot be made.
    """
    format_ = 2 if layout.version == "0.4" else 3
    try:
        root = zarr.open_group(str(path), mode="w-", zarr_format=format_)
    except (OSError, ValueError) as error:
        raise PredictionError(f"cannot make {path}: {error}. Choose another output.") from error
    _set(root, layout.version, {"multiscales": [_multiscales(layout, "classes", f"{_LABELS}/")]})
    root.attrs[RECORD] = record
    labels = root.create_group("labels")
    _set(labels, layout.version, {"labels": ["classes"]})
    classes = _make_pyramid(labels.create_group("classes"), layout)
    multiscales = _multiscales(layout, "classes", "")
    _set(classes, layout.version, {"multiscales": [multiscales], "image-label": _image_label(layout)})
    if layout.uncertainty:
        image = _make_pyramid(root.create_group(_UNCERTAINTY), layout)
        _set(image, layout.version, {"multiscales": [_multiscales(layout, "uncertainty", "", "mean")]})
    if layout.probabilities:
        image = _make_pyramid(root.create_group(_PROBABILITIES), layout, len(layout.classes))
        multiscales = _multiscales(layout, "probabilities", "", "mean", channels=True)
        _set(image, layout.version, {"multiscales": [multiscales], "omero": _omero(layout)})


def create_label_image(path: Path, layout: StoreLayout, name: str, record: dict[str, Any]) -> list[zarr.Array]:
    """Make a label image with an empty pyramid, to be moved into the ``labels`` of a store; its levels.

    `record` is saved as the attribute `RECORD`.
    """
    group = zarr.open_group(str(path), mode="w-", zarr_format=2 if layout.version == "0.4" else 3)
    _make_pyramid(group, layout)
    multiscales = _multiscales(layout, name, "")
    _set(group, layout.version, {"multiscales": [multiscales], "image-label": _image_label(layout)})
    group.attrs[RECORD] = record
    return _levels(group)


def open_levels(path: Path) -> list[zarr.Array]:
    """The levels of a label image made by `create_label_image`, to be filled."""
    return _levels(zarr.open_group(str(path), mode="r+"))


class PredictionStore:
    """An OME-Zarr prediction that is being filled or read."""

    def __init__(self, path: Path, mode: Literal["r", "r+"] = "r+") -> None:
        self.path = path
        try:
            self._root = zarr.open_group(str(path), mode=mode)
            self.labels: list[zarr.Array] = _levels(self._root[_LABELS])
        except (OSError, KeyError, ValueError) as error:
            raise PredictionError(f"{path} is not a prediction of this program: {error}.") from error
        self.uncertainty = self._image(_UNCERTAINTY)
        self.probabilities = self._image(_PROBABILITIES)
        """Levels of (K, h, w), a channel per class in the order of the class table; 255 is 1."""

    def _image(self, name: str) -> list[zarr.Array]:
        """Levels of an image, finest first; empty where there is none."""
        return _levels(self._root[name]) if name in self._root else []

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of the prediction.

        Raises
        ------
        PredictionError
            Where it is not there or cannot be used.
        """
        attributes = self._root[_LABELS].attrs
        label = attributes.get("ome", attributes).get("image-label", {})
        try:
            colours = {c["label-value"]: "#{:02x}{:02x}{:02x}".format(*c["rgba"][:3]) for c in label["colors"]}
            return make_classes(
                ClassDef(p["label-value"], p["name"], colours[p["label-value"]]) for p in label["properties"]
            )
        except (KeyError, TypeError, ValueError, IndexError, SparseSegError) as error:
            raise PredictionError(f"{self.path} has no class table that can be read: {error!r}.") from error

    @property
    def version(self) -> Version:
        """Of OME-Zarr."""
        return "0.4" if self._root.metadata.zarr_format == 2 else "0.5"

    @property
    def placement(self) -> Placement:
        """Where the label image lies on the slide.

        Raises
        ------
        PredictionError
            Where the parameters of the prediction do not say it.
        """
        try:
            (dy, dx), mpp = self.record["downsample"], self.record["mpp"]
            return Placement(Frame((float(dy), float(dx))), None if mpp is None else (float(mpp[0]), float(mpp[1])))
        except (KeyError, TypeError, ValueError) as error:
            raise PredictionError(f"{self.path} does not say where it lies on its slide: {error!r}.") from error

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the label images beside the prediction's own."""
        labels = self._root["labels"]
        return tuple(n for n in labels.attrs.get("ome", labels.attrs).get("labels", []) if n != "classes")

    def list_label_image(self, name: str) -> None:
        """Name a label image, whose folder is in place, in the list that readers go by."""
        labels = self._root["labels"]
        names = ["classes", *self.others]
        if name not in names:
            _set(labels, self.version, {"labels": [*names, name]})

    def label_image(self, name: str) -> tuple[list[zarr.Array], dict[str, Any]]:
        """Levels of a label image beside the prediction's own, and the record it was made with."""
        group = self._root[f"labels/{name}"]
        return _levels(group), dict(group.attrs.get(RECORD, {}))

    @property
    def record(self) -> dict[str, Any]:
        """The parameters given to `create_store`."""
        return dict(self._root.attrs.get(RECORD, {}))

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the finest level."""
        h, w = self.labels[0].shape
        return h, w

    def write(
        self, shard: Box, labels: np.ndarray, uncertainty: np.ndarray | None, probabilities: np.ndarray | None = None
    ) -> None:
        """Store one shard of the finest level; uint8 arrays of the shard's size or cut at the image's border."""
        region = shard.intersection(Box(0, 0, *self.shape))
        inside = (slice(0, region.height), slice(0, region.width))
        self.labels[0][region.slices()] = labels[inside]
        if self.uncertainty and uncertainty is not None:
            self.uncertainty[0][region.slices()] = uncertainty[inside]
        if self.probabilities and probabilities is not None:
            self.probabilities[0][(slice(None), *region.slices())] = probabilities[(slice(None), *inside)]

    def build_pyramid(self, on_block: Callable[[int, int], None] | None = None) -> None:
        """Fill the coarser levels from the finest; `on_block(done, total)` is called after each block."""
        fill_pyramids([(self.labels, majority), (self.uncertainty, mean), (self.probabilities, mean)], on_block)

    def bands(self, rows: int = CHUNK) -> Iterator[np.ndarray]:
        """The finest label level as bands of full-width rows, uint8 (<= rows, w)."""
        for y in range(0, self.shape[0], rows):
            yield self.labels[0][y : y + rows]


def fill_pyramids(
    images: Sequence[tuple[Sequence[zarr.Array], Callable[[np.ndarray], np.ndarray]]],
    on_block: Callable[[int, int], None] | None = None,
) -> None:
    """Fill the coarser levels of images from their finest.

    Parameters
    ----------
    images
        The levels of each, (h, w) or (K, h, w), and what halves a block of it.
    on_block
        Called with blocks done and blocks in all.
    """
    jobs = [(levels, k, pool) for levels, pool in images for k in range(1, len(levels))]
    blocks = [list(tiles(Box(0, 0, *levels[k].shape[-2:]), SHARD)) for levels, k, _ in jobs]
    total, done = sum(len(b) for b in blocks), 0
    for (levels, k, pool), boxes in zip(jobs, blocks, strict=True):
        for box in boxes:
            target = box.intersection(Box(0, 0, *levels[k].shape[-2:]))
            source = Box(2 * target.y, 2 * target.x, 2 * target.height, 2 * target.width)
            for channel in [()] if levels[k].ndim == 2 else [(c,) for c in range(levels[k].shape[0])]:
                levels[k][(*channel, *target.slices())] = pool(_even(levels[k - 1][(*channel, *source.slices())]))
            done += 1
            if on_block is not None:
                on_block(done, total)


def majority(block: np.ndarray) -> np.ndarray:
    """Halve an even-sided label image: the most frequent value of each 2 x 2; on a tie the first in reading order."""
    a, b, c, d = block[::2, ::2], block[::2, 1::2], block[1::2, ::2], block[1::2, 1::2]
    twice_a = (a == b) | (a == c) | (a == d)
    return np.where(twice_a, a, np.where((b == c) | (b == d), b, np.where(c == d, c, a)))


def mean(block: np.ndarray) -> np.ndarray:
    """Halve an even-sided uint8 image: the rounded mean of each 2 x 2."""
    wide = block.astype(np.uint16)
    total = wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _even(block: np.ndarray) -> np.ndarray:
    """The block with its last row and column repeated where a side is odd."""
    h, w = block.shape
    return np.pad(block, ((0, h % 2), (0, w % 2)), mode="edge") if h % 2 or w % 2 else block


def _levels(group: zarr.Group) -> list[zarr.Array]:
    attributes = group.attrs.get("ome", group.attrs)
    return [group[str(d["path"])] for d in attributes["multiscales"][0]["datasets"]]


def _set(group: zarr.Group, version: Version, attributes: dict[str, Any]) -> None:
    """Version 0.4 has its metadata at the top of the attributes; 0.5 has all of it under "ome"."""
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": version, **attributes}})


def _make_pyramid(group: zarr.Group, layout: StoreLayout, channels: int = 0) -> zarr.Group:
    """Empty uint8 arrays 0..n, of several channels or of none; zlib for 0.4, which every reader can decode."""
    first, one, axis = ((channels,), (1,), ("c",)) if channels else ((), (), ())
    for k, shape in enumerate(layout.shapes):
        options: dict[str, Any]
        if layout.version == "0.4":
            options = {
                "compressors": numcodecs.Zlib(1),
                "chunk_key_encoding": {"name": "v2", "separator": "/"},
            }
        else:
            options = {
                "compressors": zarr.codecs.ZstdCodec(level=1),
                "shards": (*one, SHARD, SHARD),
                "dimension_names": (*axis, "y", "x"),
            }
        chunks = (*one, CHUNK, CHUNK)
        group.create_array(str(k), shape=(*first, *shape), chunks=chunks, dtype="uint8", fill_value=0, **options)
    return group


def _multiscales(
    layout: StoreLayout, name: str, prefix: str, method: str = "mode", *, channels: bool = False
) -> dict[str, Any]:
    axis: dict[str, str] = {"type": "space"}
    if layout.placement.mpp:
        axis["unit"] = "micrometer"
    datasets = [
        {
            "path": f"{prefix}{k}",
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0] * channels + list(layout.placement.pyramid_spacing(k))},
                {"type": "translation", "translation": [0.0] * channels + list(layout.placement.pyramid_origin(k))},
            ],
        }
        for k in range(len(layout.shapes))
    ]
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] * channels + [{"name": a, **axis} for a in "yx"]
    multiscales: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if layout.version == "0.4":
        multiscales["version"] = "0.4"
    return {**multiscales, "type": method}


def _omero(layout: StoreLayout) -> dict[str, Any]:
    """Names and colours of the channels, as viewers show them; version 0.4 of this part is that of all versions."""
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": c.name, "color": c.colour.lstrip("#").upper(), "active": True, "window": window}
        for c in layout.classes
    ]
    return {"version": "0.4", "channels": channels, "rdefs": {"model": "color"}}


def _image_label(layout: StoreLayout) -> dict[str, Any]:
    colours: Sequence[dict[str, Any]] = [{"label-value": c.id, "rgba": [*c.rgb, 255]} for c in layout.classes]
    properties = [{"label-value": c.id, "name": c.name, "class": c.name} for c in layout.classes]
    label: dict[str, Any] = {"colors": colours, "properties": properties, "source": {"image": "../../"}}
    return {"version": "0.4", **label} if layout.version == "0.4" else label
