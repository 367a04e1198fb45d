"""Label images, TIFF and OME-Zarr, as annotations and back.

Read: images of the slide's size, or smaller by any factor. Written: tile by tile, at any resolution; a pixel has the
label of the level-0 pixel under its centre, as in training. Class ids are the values and 0 is unlabelled. At full
resolution reading the written image gives the same labels.
"""

from __future__ import annotations

import shutil
import struct
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from napari_sparseseg.annotations import Annotations, MaskPiece
from napari_sparseseg.annotations.packing import CHUNK
from napari_sparseseg.config import MAX_CLASS_ID, PALETTE, ClassDef
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box, Frame, tiles

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.io.shapes import Classes

BLOCK = 8 * CHUNK
"""Side in pixels of what is read at once."""
TILE = 1024
"""Side in pixels of what is written at once."""
TIFF_SUFFIXES = (".tif", ".tiff")


def read_labels(path: str | os.PathLike[str], shape: tuple[int, int], classes: Classes | None = None) -> Annotations:
    """Annotations from a label image: its values are class ids, 0 is unlabelled.

    Where the image is smaller than the slide by a power of two, each of its pixels becomes exactly the level-0 pixels
    that it covers; for other factors a pixel gets the label under its centre, at the nearest finer level.

    Parameters
    ----------
    path
        TIFF file, or OME-Zarr image with labels or label group.
    shape
        Slide (H, W) in level-0 pixels.
    classes
        Class table; ids that are not in it are appended with the file's own names, or ``class N``.

    Raises
    ------
    AnnotationError
        Where the image cannot be read, does not fit the slide, or has values that are not class ids.
    """
    source = Path(path)
    with opened_labels(source) as (pixels, own):
        if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
            raise AnnotationError(
                f"{source.name} is not a label image: it needs two axes of integers, not {pixels.shape} {pixels.dtype}."
            )
        scale = pixel_scale(source, pixels.shape, shape)
        out = Annotations(shape, classes or own or ())
        try:
            _draw(out, pixels, scale, (source, own))
        except (tifffile.TiffFileError, OSError, IndexError, ValueError) as error:
            raise AnnotationError(f"cannot read the label image {source.name}: {error}.") from error
    out.forget_history()
    return out


def pixel_scale(source: Path, image: tuple[int, ...], slide: tuple[int, int]) -> tuple[float, float]:
    """Level-0 pixels per image pixel (y, x), exact powers of two where the image can be that."""
    for level in range(32):
        sides = [{n >> level, -(-n >> level), round(n / (1 << level))} for n in slide]
        if image[0] in sides[0] and image[1] in sides[1]:
            return float(1 << level), float(1 << level)
    dy, dx = (n / m for n, m in zip(slide, image, strict=True))
    if not 0.98 < dy / dx < 1.02 or min(dy, dx) < 1:
        raise AnnotationError(f"{source.name} has {image} pixels, which do not fit a slide of {slide}.")
    return dy, dx


def _draw(out: Annotations, pixels: Any, scale: tuple[float, float], file: tuple[Path, list[ClassDef]]) -> None:
    """Draw block by block; every block and class is one stroke of kind ``fill``, all of them one step."""
    level = min(int(np.log2(min(scale) + 1e-9)), out.top_level)
    step = BLOCK << level
    origins = [(y, x) for y in range(0, out.shape[0], step) for x in range(0, out.shape[1], step)]

    def pieces() -> Iterator[MaskPiece]:
        for y, x in origins:
            block = _block(pixels, scale, level, (y, x), out.shape)
            if block.size == 0 or not block.any():
                continue
            if int(block.max()) > MAX_CLASS_ID or int(block.min()) < 0:
                raise AnnotationError(
                    f"{file[0].name} has values up to {block.max()}; class ids are 1 to {MAX_CLASS_ID}."
                )
            for class_id in np.unique(block[block > 0]).tolist():
                _know(out, class_id, file[1])
                yield MaskPiece(level, y >> level, x >> level, block == class_id, class_id)

    out.draw_masks(pieces())


def _know(out: Annotations, class_id: int, own: list[ClassDef]) -> None:
    if class_id in {c.id for c in out.classes}:
        return
    name = next((c.name for c in own if c.id == class_id), f"class {class_id}")
    colour = next((c.colour for c in own if c.id == class_id), "")
    out.set_classes([*out.classes, ClassDef(class_id, name, colour or PALETTE[(class_id - 1) % len(PALETTE)])])


def _block(
    pixels: Any, scale: tuple[float, float], level: int, origin: tuple[int, int], shape: tuple[int, int]
) -> NDArray[Any]:
    """Values at the centres of a block's pixels at `level`; 0 outside the image."""
    index = []
    for start, side, per_pixel, have in zip(origin, shape, scale, pixels.shape, strict=True):
        centres = (np.arange(start >> level, min((start >> level) + BLOCK, -(-side >> level))) + 0.5) * (1 << level)
        # A coarse pixel that extends beyond the slide is read inside it.
        at = np.floor(np.minimum(centres, side - 0.5) / per_pixel).astype(np.int64)
        index.append(at[at < have])
    if not len(index[0]) or not len(index[1]):
        return np.zeros((0, 0), np.uint8)
    (a, b), (c, d) = ((i[0], i[-1] + 1) for i in index)
    values = np.asarray(pixels[a:b, c:d])
    return values[np.ix_(index[0] - a, index[1] - c)]


@contextmanager
def opened_labels(path: Path) -> Iterator[tuple[Any, list[ClassDef]]]:
    """(lazily read array, class table) of a label image.

    Raises
    ------
    AnnotationError
        Where it cannot be opened.
    """
    if path.is_dir():
        yield _zarr_labels(path)
        return
    import zarr

    with ExitStack() as files:
        try:
            tiff = files.enter_context(tifffile.TiffFile(path))
            store = tiff.series[0].aszarr(level=0)
            files.callback(store.close)
            pixels = zarr.open_array(store, mode="r")
        except (tifffile.TiffFileError, struct.error, OSError, IndexError, ValueError) as error:
            raise AnnotationError(f"cannot read the label image {path.name}: {error}.") from error
        yield pixels, []


def _zarr_labels(path: Path) -> tuple[Any, list[ClassDef]]:
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r")
        if "labels" in group:
            names = _ome(group["labels"]).get("labels") or sorted(group["labels"].keys())
            group = group["labels"][names[0]]
        attributes = _ome(group)
        first = attributes["multiscales"][0]["datasets"][0]["path"]
        array = group[first]
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise AnnotationError(f"{path.name} holds no OME-Zarr labels: {error}.") from error
    while array.ndim > 2 and array.shape[0] == 1:
        array = _FirstOf(array)
    return array, _named_classes(attributes.get("image-label") or {})


class _FirstOf:
    """An array without its first axis, of length 1; read lazily."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.ndim, self.dtype = array.shape[1:], array.ndim - 1, array.dtype

    def __getitem__(self, index: Any) -> Any:
        return self._array[(0, *index) if isinstance(index, tuple) else (0, index)]


def _ome(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))


def _named_classes(image_label: dict[str, Any]) -> list[ClassDef]:
    """The class table of ``image-label``: colours by value, and names where ``properties`` has them."""
    out = []
    names = {p.get("label-value"): p.get("name") or p.get("class") for p in image_label.get("properties") or []}
    for colour in image_label.get("colors") or []:
        value, rgba = colour.get("label-value"), colour.get("rgba") or []
        if isinstance(value, int) and 1 <= value <= MAX_CLASS_ID and len(rgba) >= 3:
            name = names.get(value) or f"class {value}"
            out.append(ClassDef(value, str(name), "#{:02x}{:02x}{:02x}".format(*(int(v) & 255 for v in rgba[:3]))))
    return out


def write_labels(
    annotations: Annotations,
    path: str | os.PathLike[str],
    *,
    downsample: float = 1.0,
    mpp: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write a label image; one tile is in memory at once, and tiles without labels are not stored in OME-Zarr.

    Parameters
    ----------
    annotations
        Scribbles and the rest classes of dense regions, scribbles first.
    path
        ``.tif``, ``.tiff`` (``.ome.tif`` too) or ``.zarr``.
    downsample
        Level-0 pixels per pixel of the image, along both axes; 1 or more.
    mpp
        Micrometres per level-0 pixel, written as the image's scale times `downsample`; None: not known.
    overwrite
        Replace an existing file; without it none is, for it may be the slide.

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
    if target.exists() and not overwrite:
        raise AnnotationError(f"{target} exists already; remove it, or choose another name.")
    part = target.with_name(f"{target.name}.part{suffix}")
    image = _Image(annotations.snapshot(), Frame((downsample, downsample)), mpp)
    try:
        _remove(part)
        if suffix == ".zarr":
            _write_zarr(image, part)
        else:
            _write_tiff(image, part)
        if target.is_dir():  # a folder cannot be replaced by renaming
            _remove(target)
        part.replace(target)
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
    """A label image that is computed tile by tile."""

    def __init__(self, snapshot: Snapshot, frame: Frame, mpp: float | None) -> None:
        self.snapshot, self.frame, self.mpp = snapshot, frame, mpp
        self.shape = frame.shape(snapshot.shape)
        self._occupied = {(box.y, box.x) for box in snapshot.occupied(frame, TILE)}

    def tiles(self) -> Iterator[tuple[Box, NDArray[np.uint8] | None]]:
        """All tiles, row by row, not cut at the border; None where nothing is labelled."""
        for box in tiles(Box(0, 0, *self.shape), TILE):
            yield box, self.snapshot.read_region(box, self.frame) if (box.y, box.x) in self._occupied else None


def _write_tiff(image: _Image, path: Path) -> None:
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
