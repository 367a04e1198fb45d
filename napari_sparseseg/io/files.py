"""Annotation files whatever their format: find the one beside a slide, load it, convert it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.annotations import Annotations, renumbered
from napari_sparseseg.annotations.sqlite_file import MAGIC
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.asap import read_asap, write_asap
from napari_sparseseg.io.geojson import read_geojson, shape_in, write_geojson
from napari_sparseseg.io.labels import TIFF_SUFFIXES, read_labels, write_labels
from napari_sparseseg.io.shapes import ClassLookup

if TYPE_CHECKING:
    import os

    from napari_sparseseg.io.shapes import Classes

SUFFIXES = (".geojson", ".xml", ".sparseseg")
OWN = (".sparseseg", ".sqlite")


def find_annotations(slide: str | os.PathLike[str]) -> Path:
    """The annotation file beside a slide: with its stem and ``.geojson``, ``.xml`` or ``.sparseseg``, in this order.

    Raises
    ------
    AnnotationError
        Where there is none.
    """
    path = Path(slide)
    stem = path.name.removesuffix(path.suffix)
    for name in dict.fromkeys((stem, stem.removesuffix(".ome"))):
        for suffix in SUFFIXES:
            found = path.with_name(name + suffix)
            if found.exists():
                return found
    wanted = ", ".join(f"{stem.removesuffix('.ome')}{suffix}" for suffix in SUFFIXES)
    raise AnnotationError(f"there are no annotations beside {path}; expected one of {wanted}, or name the file.")


def load_annotations(
    path: str | os.PathLike[str], shape: tuple[int, int] | None, classes: Classes | None = None
) -> Annotations:
    """Annotations from a file of any known format.

    Parameters
    ----------
    path
        GeoJSON, ASAP's XML, a label image (TIFF, OME-Zarr), an annotation file of this program, or a project folder
        with annotations of one slide of that shape.
    shape
        Slide (H, W) in level-0 pixels; None: as the file says, if it does.
    classes
        Class table to start from; the file's classes are matched by name whatever their case (label images: by id), new
        ones are appended. None or empty: the file's own.

    Raises
    ------
    AnnotationError
        Where the file cannot be read or belongs to a slide of another size.

    Examples
    --------
    >>> from napari_sparseseg import load_annotations
    >>> from napari_sparseseg.samples import sample_scribbles
    >>> annotations = load_annotations(sample_scribbles(), (4096, 4096))
    >>> [c.name for c in annotations.classes]
    ['tumour glands', 'stroma', 'lymphoid', 'necrosis', 'background']
    """
    source = Path(path)
    table = list(classes or ())
    if not source.exists():
        raise AnnotationError(f"there is no annotation file {source}.")
    kind = _kind(source)
    shape = shape or _own_shape(source, kind)
    if kind == "geojson":
        return read_geojson(source, shape, table)
    if kind == "asap":
        return read_asap(source, shape, table)
    if kind == "labels":
        return read_labels(source, shape, table)
    found = Annotations.load(source if kind == "own" else _in_project(source, shape))
    if found.shape != tuple(shape):
        raise AnnotationError(f"{source} was drawn on a slide of {found.shape} pixels, this one has {tuple(shape)}.")
    return _with_table(found, table) if table else found


def _kind(path: Path) -> str:
    """The format of a file, by its content where that is unambiguous, else by its suffix."""
    if path.is_dir():
        is_project = (path / "project.json").exists() or path.suffix == ".sparseseg"
        return "project" if is_project else "labels"
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise AnnotationError(f"{path} is not a regular file; give an annotation file.")
    if path.suffix.lower() in (".sparseseg", ".sqlite"):
        return "own"  # not opened here, see `annotations.sqlite_file.connect`
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise AnnotationError(f"cannot open {path}: {error.strerror or error}.") from error
    if head.startswith(MAGIC):
        return "own"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "labels"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    suffix = path.suffix.lower()
    if start[:1] in (b"{", b"[") or suffix in (".geojson", ".json"):
        return "geojson"
    if start[:1] == b"<" or suffix == ".xml":
        return "asap"
    raise AnnotationError(f"{path} has no known format: GeoJSON, XML of ASAP, label TIFF or OME-Zarr, or .sparseseg.")


def _in_project(folder: Path, shape: tuple[int, int]) -> Path:
    """The one annotation file of a project folder that was drawn on a slide of that shape."""
    files = sorted((folder / "annotations").glob("*.sqlite"))
    fitting = [file for file in files if Annotations.load(file).shape == tuple(shape)]
    if len(fitting) != 1:
        raise AnnotationError(
            f"the project {folder} has {len(fitting)} annotation files for a slide of {tuple(shape)} pixels, of "
            f"{len(files)} in all; name one of the files in its folder annotations."
        )
    return fitting[0]


def _with_table(found: Annotations, classes: Classes) -> Annotations:
    """The same labels under another class table, matched by name."""
    table = ClassLookup(classes)
    moved = {c.id: table.id_of(c.name, c.colour) for c in found.classes}
    if all(old == new for old, new in moved.items()):
        found.set_classes(table.classes)
        return found
    return renumbered(found, moved, table.classes)


WRITTEN = (".geojson", ".json", ".xml", *OWN, *TIFF_SUFFIXES, ".zarr")
"""Suffixes that `save_annotations` knows."""


def save_annotations(annotations: Annotations, path: str | os.PathLike[str]) -> None:
    """Write annotations in the format of the suffix: GeoJSON, ASAP's XML, label image, or the program's own file.

    Raises
    ------
    AnnotationError
        Where the suffix is another, or the file cannot be written.

    Examples
    --------
    >>> from napari_sparseseg import Annotations, save_annotations
    >>> annotations = Annotations((1000, 2000), classes=["tumour", "stroma"])
    >>> annotations.paint([(100, 100), (100, 400)], 5, 1)
    >>> save_annotations(annotations, "strokes.geojson")
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in WRITTEN:
        raise AnnotationError(
            f"annotations are written as .geojson, .sparseseg, .xml (ASAP), .tif or .ome.zarr, not as {target.name}."
        )
    if suffix in OWN:
        annotations.save(target)
    elif suffix == ".xml":
        write_asap(annotations, target)
    elif suffix in (".geojson", ".json"):
        write_geojson(annotations, target)
    else:
        write_labels(annotations, target)


def _own_shape(path: Path, kind: str) -> tuple[int, int]:
    """The slide's shape, where the file says it."""
    if kind == "own":
        return Annotations.load(path).shape
    if kind == "geojson":
        shape = shape_in(path)
        if shape is not None:
            return shape
    raise AnnotationError(f"{path.name} does not say how large its slide is; name the slide (--slide).")
