"""Annotations written as label images: OME-TIFF and OME-Zarr labels, tile by tile, at any resolution.

A pixel of the image has the label of the level-0 pixel under its centre, as in training; class ids are the values and
0 is unlabelled. At full resolution reading the image back gives the same labels.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box, Frame, tiles

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations, Snapshot
    from napari_sparseseg.io.shapes import Progress

TILE = 1024
TIFF_SUFFIXES = (".tif", ".tiff")


def write_labels(
    annotations: Annotations,
    path: str | os.PathLike[str],
    *,
    downsample: float = 1.0,
    mpp: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a label image; one tile is in memory at once, and tiles without labels are not stored in OME-Zarr.

    Parameters
    ----------
    annotations
        Scribbles and the rest classes of dense regions, scribbles first.
    path
        ``.tif``, ``.tiff`` (``.ome.tif`` too) or ``.zarr``; replaced if it exists.
    downsample
        Level-0 pixels per pixel of the image, along both axes; 1 or more.
    mpp
        Micrometres per level-0 pixel, written as the image's scale times `downsample`; None: not known.
    progress
        Called now and then with (tiles written, all).

    Raises
    ------
    AnnotationError
        For another suffix, a `downsample` below 1, where something is there already (it may be the slide), or where
        the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (*TIFF_SUFFIXES, ".zarr"):
        raise AnnotationError(f"label images are written as .tif or .zarr, not as {target.name}.")
    if not (1.0 <= downsample < np.inf):
        raise AnnotationError(f"a label image has 1 or more level-0 pixels per pixel, not {downsample}.")
    if target.exists():
        raise AnnotationError(f"{target} exists already; remove it, or choose another name.")
    part = target.with_name(f"{target.name}.part{suffix}")
    image = _Image(annotations.snapshot(), Frame((downsample, downsample)), mpp, progress)
    tiles_in_all = -(-image.shape[0] // TILE) * -(-image.shape[1] // TILE)
    try:
        _remove(part)
        if suffix == ".zarr":
            _write_zarr(image, part)
        else:
            _write_tiff(image, part)
        part.replace(target)
        if progress is not None:
            progress(tiles_in_all, tiles_in_all)
    except (OSError, ValueError) as error:
        raise AnnotationError(f"cannot write {target}: {error}.") from error
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Image:
    """The label image that is not in memory."""

    def __init__(self, snapshot: Snapshot, frame: Frame, mpp: float | None, progress: Progress | None) -> None:
        self.snapshot, self.frame, self.mpp, self._progress = snapshot, frame, mpp, progress
        self.shape = frame.shape(snapshot.shape)
        self._occupied = {(box.y, box.x) for box in snapshot.occupied(frame, TILE)}

    def tiles(self) -> Iterator[tuple[Box, NDArray[np.uint8] | None]]:
        """All tiles, row by row, whole; None where nothing is labelled."""
        grid = list(tiles(Box(0, 0, *self.shape), TILE))
        for n, box in enumerate(grid):
            if self._progress is not None and n % 64 == 0:
                self._progress(n, len(grid))
            yield box, self.snapshot.read_region(box, self.frame) if (box.y, box.x) in self._occupied else None


def _write_tiff(image: _Image, path: Path) -> None:
    import tifffile

    def data() -> Iterator[NDArray[np.uint8]]:
        for _, labels in image.tiles():
            yield np.zeros((TILE, TILE), np.uint8) if labels is None else labels

    metadata: dict[str, Any] = {"axes": "YX", "Name": "labels"}
    if image.mpp is not None:
        step = image.mpp * image.frame.downsample[0]
        for axis in "YX":
            metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(
        path,
        data(),
        shape=image.shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        compression="zlib",
        bigtiff=image.shape[0] * image.shape[1] > 2**31,
        ome=True,
        metadata=metadata,
    )


def _write_zarr(image: _Image, path: Path) -> None:
    import zarr

    root = zarr.open_group(str(path), mode="w-", zarr_format=2)
    labels = root.create_group("labels")
    labels.attrs["labels"] = ["annotations"]
    group = labels.create_group("annotations")
    array = group.create_array(
        "0",
        shape=image.shape,
        chunks=(TILE, TILE),
        dtype="uint8",
        fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    for box, tile in image.tiles():
        if tile is not None:
            inside = box.intersection(Box(0, 0, *image.shape))
            array[inside.slices()] = tile[: inside.height, : inside.width]
    axes: list[dict[str, str]] = [{"name": axis, "type": "space"} for axis in "yx"]
    if image.mpp is not None:
        axes = [axis | {"unit": "micrometer"} for axis in axes]
    scale = [step * (image.mpp or 1.0) for step in image.frame.downsample]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "name": "annotations", "axes": axes, "datasets": datasets}]
    group.attrs["image-label"] = {
        "version": "0.4",
        "colors": [{"label-value": c.id, "rgba": [*c.rgb, 255]} for c in image.snapshot.classes],
        "properties": [{"label-value": c.id, "name": c.name} for c in image.snapshot.classes],
    }
