"""A stored label image of a slide: a prediction of this program, or the labels of another one."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tifffile
import zarr

from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef
from napari_sparseseg.errors import AnnotationError, PredictionError
from napari_sparseseg.geometry import Box, Frame, Placement
from napari_sparseseg.io.labels import opened_labels, pixel_scale
from napari_sparseseg.io.ome_tiff import read_legend, read_record
from napari_sparseseg.io.ome_zarr import RECORD

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from napari_sparseseg.io.files import SlideFrame

BAND_PIXELS = 8 << 20
"""Label pixels that are read at a time."""
CONTENTS = (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", ".tif", ".tiff")


class Pixels(Protocol):
    """What is read of an array: numpy's, zarr's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides in pixels."""

    def __getitem__(self, index: Any) -> Any:
        """A part as numpy array."""


@dataclass(frozen=True)
class StoredResult:
    """An open label image and where it lies on its slide; see `open_result`."""

    path: Path
    labels: Pixels
    classes: tuple[ClassDef, ...]
    placement: Placement
    record: dict[str, Any]
    """The parameters of the prediction; empty for the labels of another program."""
    probabilities: Pixels | None = None
    """uint8 (K, h, w), 255 is certain; None where they are not stored."""

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in label pixels."""
        h, w = self.labels.shape
        return h, w

    @property
    def slide_shape(self) -> tuple[int, int]:
        """(H, W) in level-0 pixels that the image covers; the last row and column may extend past the slide."""
        h, w = (
            max(1, int(np.floor(n * d + 1e-6)))
            for n, d in zip(self.shape, self.placement.frame.downsample, strict=True)
        )
        return h, w

    def read(self, region: Box) -> np.ndarray:
        """Class ids uint8 (h, w) of a region of the image.

        Raises
        ------
        AnnotationError
            For values that are no class ids.
        """
        try:
            block = np.asarray(self.labels[region.slices()])
        except (tifffile.TiffFileError, OSError, IndexError, ValueError, RuntimeError) as error:
            raise AnnotationError(f"cannot read the label image {self.path}: {error}.") from error
        if block.size and (int(block.min()) < 0 or int(block.max()) > MAX_CLASS_ID):
            raise AnnotationError(f"{self.path} has values up to {block.max()}; class ids are 1 to {MAX_CLASS_ID}.")
        named = np.zeros(MAX_CLASS_ID + 1, bool)
        named[[0, *(c.id for c in self.classes)]] = True
        if not named[block].all():
            unknown = int(block[~named[block]].flat[0])
            raise AnnotationError(f"{self.path} has the value {unknown}, which its class table does not name.")
        return block.astype(np.uint8, copy=False)

    def bands(self) -> Iterator[Box]:
        """Regions of full-width rows that together are the image."""
        height, width = self.shape
        rows = max(16, min(512, BAND_PIXELS // width))
        for top in range(0, height, rows):
            yield Box(top, 0, min(rows, height - top), width)


@contextmanager
def open_result(path: str | os.PathLike[str], slide: SlideFrame | None = None) -> Iterator[StoredResult]:
    """Open a label image to read it in parts.

    Parameters
    ----------
    path
        ``.ome.zarr`` or TIFF of this program or another; ``X.ome.zarr/labels/NAME`` for one of several label images.
    slide
        The slide that it was made of, for images that do not say their scale.

    Raises
    ------
    PredictionError
        Where there is no such image, or it belongs to another slide.
    AnnotationError
        Where it cannot be read.
    """
    source = Path(path)
    if not source.exists():
        raise PredictionError(f"there is no result {source}. Check the path.")
    named = store_of(source).name.lower()
    if not named.endswith(CONTENTS) or source.is_dir() != named.endswith(".zarr"):
        raise PredictionError(f"{source} is no label image; give an .ome.zarr folder or an .ome.tif file.")
    with opened_labels(source) as (pixels, classes):
        if len(pixels.shape) != 2 or pixels.dtype.kind not in "ui":
            raise PredictionError(
                f"{source.name} is not a label image: it needs two axes of integers, not {pixels.shape} {pixels.dtype}."
            )
        record = record_of(source)
        scale, probabilities = _zarr_facts(source) if source.is_dir() else (None, None)
        classes = classes or read_legend(source)
        placement = _placement(source, pixels.shape, record, scale, slide)
        yield StoredResult(source, pixels, _table(classes, pixels, record), placement, record, probabilities)


def record_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parameters of a prediction of this program; empty for anything else."""
    source = Path(path)
    if not source.is_dir():
        return read_record(source)
    try:
        return dict(zarr.open_group(str(store_of(source)), mode="r").attrs.get(RECORD) or {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def store_of(path: Path) -> Path:
    """The OME-Zarr folder that a path is, or lies in."""
    return next((p for p in (path, *path.parents) if p.name.lower().endswith(".zarr")), path)


def _zarr_facts(path: Path) -> tuple[dict[str, Any] | None, Pixels | None]:
    """Axes and scale of the finest labels, and the probability maps."""
    root = zarr.open_group(str(store_of(path)), mode="r")
    probabilities = root["probabilities/0"] if "probabilities" in root else None
    group = zarr.open_group(str(path), mode="r")
    if "labels" in group:
        names = _ome(group["labels"]).get("labels") or sorted(group["labels"].keys())
        group = group["labels"][names[0]]
    try:
        return _ome(group)["multiscales"][0], probabilities
    except (KeyError, IndexError, TypeError):
        return None, probabilities


def _ome(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))


def _placement(
    path: Path, shape: tuple[int, ...], record: dict[str, Any], scale: dict[str, Any] | None, slide: SlideFrame | None
) -> Placement:
    """Where the image lies: as the record says, as it fits the slide, or as its own scale says."""
    try:
        if record:
            dy, dx = (float(v) for v in record["downsample"])
            mpp = None if record["mpp"] is None else (float(record["mpp"][0]), float(record["mpp"][1]))
            if not all(0 < v < np.inf for v in (dy, dx, *(mpp or ()))):
                raise ValueError("a size is not positive")
            return Placement(Frame((dy, dx)), mpp)
        spacing = _spacing(scale) if scale else None
        if slide is None:
            return Placement(Frame(), spacing)
        if spacing and slide.mpp:
            dy, dx = spacing[0] / slide.mpp[0], spacing[1] / slide.mpp[1]
            if all(abs(n * d / m - 1) < 0.02 for n, d, m in zip(shape, (dy, dx), slide.shape, strict=True)):
                return Placement(Frame((dy, dx)), slide.mpp)
        return Placement(Frame(pixel_scale(path, shape, slide.shape)), slide.mpp)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PredictionError(f"{path} does not say where it lies on its slide ({error}).") from error


def _spacing(multiscales: dict[str, Any]) -> tuple[float, float] | None:
    """Micrometres per pixel (y, x) of OME-Zarr labels; None where their axes have another unit or none."""
    units = [axis.get("unit") for axis in multiscales["axes"][-2:]]
    if units != ["micrometer", "micrometer"]:
        return None
    transforms = multiscales["datasets"][0]["coordinateTransformations"]
    y, x = next(t["scale"] for t in transforms if t["type"] == "scale")[-2:]
    if not (0 < y < np.inf and 0 < x < np.inf):
        raise ValueError(f"a scale of {y}, {x}")
    return float(y), float(x)


def _table(classes: Sequence[ClassDef], pixels: Pixels, record: dict[str, Any]) -> tuple[ClassDef, ...]:
    """The class table, each name once; values that another program's image does not name are found in its pixels."""
    if record and not classes:
        raise PredictionError("the prediction has lost its class table; predict the slide again.")
    table = {c.id: c for c in classes}
    if not record:
        height, width = pixels.shape
        step = max(16, BAND_PIXELS // width)
        for top in range(0, height, step):
            for k in np.unique(np.asarray(pixels[top : top + step])).tolist():
                if 0 < k <= MAX_CLASS_ID and k not in table:
                    table[k] = ClassDef(k, f"class {k}", PALETTE[(k - 1) % len(PALETTE)])
    count = Counter(c.name.casefold() for c in table.values())
    ordered = [table[k] for k in sorted(table)] if not record else list(classes)
    return tuple(c if count[c.name.casefold()] == 1 else replace(c, name=f"{c.name} ({c.id})") for c in ordered)


def label_images(path: Path) -> tuple[Path, ...]:
    """The label images of a result, what was predicted first: ``X.ome.zarr/labels/NAME``, or the file itself."""
    folder = path / "labels"
    if not folder.is_dir():
        return (path,)
    names = sorted(image.name for image in folder.iterdir() if image.is_dir())
    return tuple(folder / name for name in sorted(names, key=lambda n: n != "classes")) or (path,)
