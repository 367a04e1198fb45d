"""Annotation files whatever their format: find the one beside a slide, load it, convert it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_sparseseg.annotations import Annotations, renumbered
from napari_sparseseg.annotations.sqlite_file import MAGIC
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.io.asap import AsapReader, write_asap
from napari_sparseseg.io.geojson import parse_geojson, shape_in, write_geojson
from napari_sparseseg.io.labels import TIFF_SUFFIXES, read_labels, write_labels
from napari_sparseseg.io.shapes import ClassLookup, to_annotations
from napari_sparseseg.io.text_files import TEXT_SUFFIXES, read_bytes
from napari_sparseseg.io.vendor_xml import LayersReader, NdpaReader, NdpiFrame
from napari_sparseseg.io.xml_events import parse_xml

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from napari_sparseseg.io.shapes import Classes, Document
    from napari_sparseseg.io.xml_events import XmlReader

BESIDE_SLIDE = (".geojson", ".xml", ".sparseseg")
"""Suffixes by which the annotations of a slide are found, the first that exists."""
OWN = (".sparseseg", ".sqlite")


def find_annotations(slide: str | os.PathLike[str], image: int | None = None) -> Path:
    """The annotation file beside a slide: with its stem and ``.geojson``, ``.xml`` or ``.sparseseg``, in this order.

    Of a file with several images, ``STEM-image-N`` is for image N and is looked for first.

    Raises
    ------
    AnnotationError
        Where there is none.
    """
    path = Path(slide)
    stem = path.name.removesuffix(path.suffix)
    stems = dict.fromkeys((stem, stem.removesuffix(".ome")))
    for name in (*(f"{s}-image-{image}" for s in stems if image), *stems):
        for suffix in BESIDE_SLIDE:
            found = path.with_name(name + suffix)
            if found.exists():
                return found
    wanted = ", ".join(f"{stem.removesuffix('.ome')}{suffix}" for suffix in BESIDE_SLIDE)
    raise AnnotationError(f"there are no annotations beside {path}; expected one of {wanted}, or name the file.")


class SlideFrame(Protocol):
    """The part of a slide that says where the coordinates of other programs begin; `Slide` is one."""

    path: str
    """The file."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of level 0."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 pixel size (y, x) in um."""


def load_annotations(
    path: str | os.PathLike[str],
    shape: tuple[int, int] | None,
    classes: Classes | None = None,
    *,
    slide: SlideFrame | None = None,
) -> Annotations:
    """Annotations from a file of any known format.

    Parameters
    ----------
    path
        GeoJSON, the XML of ASAP, ImageScope, HALO (``.annotations``) or NDP.view (``.ndpa``), each also compressed by
        gzip or zip; a label image (TIFF, OME-Zarr); an annotation file of this program, or a project folder with
        annotations of one slide of that shape.
    shape
        Slide (H, W) in level-0 pixels; None: that of `slide`, or as the file says, if it does.
    classes
        Class table to start from; the file's classes are matched by name ignoring case (label images: by id), new ones
        are appended. None or empty: the file's own.
    slide
        The slide, for formats whose coordinates do not begin at the corner of level 0: where the file has a scanned
        area inside a larger canvas, and for ``.ndpa``.

    Raises
    ------
    AnnotationError
        Where the file cannot be read or belongs to a slide of another size.

    Warns
    -----
    AnnotationWarning
        When objects of the file were left out, or label nothing.

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
    shape = shape or (slide.shape if slide is not None else _own_shape(source, kind))
    if kind == "text":
        data = read_bytes(source)
        try:
            document, origin = _parse(source, data, slide)
            return to_annotations(document, shape, table, name=source.name, origin=origin)
        except AnnotationError as error:
            raise AnnotationError(f"{source.name}: {error}") from error
    if kind == "labels":
        return read_labels(source, shape, table)
    found = Annotations.load(source if kind == "own" else _in_project(source, shape))
    if found.shape != tuple(shape):
        raise AnnotationError(f"{source} was drawn on a slide of {found.shape} pixels, this one has {tuple(shape)}.")
    return _with_table(found, table) if table else found


def read_document(source: Path, slide: SlideFrame) -> tuple[Document, tuple[float, float]] | None:
    """The shapes of a text file, not drawn yet, and the level-0 (y, x) of its (0, 0); None for another kind of file.

    Raises
    ------
    AnnotationError
        Where there is no such file, or it cannot be read.
    """
    if not source.exists():
        raise AnnotationError(f"there is no annotation file {source}.")
    if _kind(source) != "text":
        return None
    try:
        return _parse(source, read_bytes(source), slide)
    except AnnotationError as error:
        raise AnnotationError(f"{source.name}: {error}") from error


def _parse(source: Path, data: bytes, slide: SlideFrame | None) -> tuple[Document, tuple[float, float]]:
    """The shapes of a text file, and the level-0 (y, x) of its (0, 0)."""
    if _is_json(source, data):
        return parse_geojson(data), _origin(slide, "bounds")

    def ndpa() -> NdpaReader:
        if slide is None:
            raise AnnotationError(
                "positions in an .ndpa file are nanometres from the centre of the glass slide; open or name the slide."
            )
        return NdpaReader(NdpiFrame.of(Path(slide.path), slide.shape, slide.mpp))

    readers: dict[str, Callable[[], XmlReader]] = {
        "ASAP_Annotations": AsapReader,
        "Annotations": LayersReader,
        "annotations": ndpa,
    }
    return parse_xml(data, readers), _origin(slide, "canvas")


def _origin(slide: SlideFrame | None, area: str) -> tuple[float, float]:
    """Level-0 (y, x) of the scanned area (``bounds``, QuPath's frame) or of the ``canvas`` (that of the others)."""
    box = getattr(slide, area, None)
    return (0.0, 0.0) if box is None else (float(box.y), float(box.x))


def _is_json(source: Path, data: bytes) -> bool:
    start = data[:400].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    suffixes = [suffix.lower() for suffix in source.suffixes]
    if start[:1] in (b"{", b"["):
        return True
    if start[:1] == b"<":
        return False
    if start.startswith(b"\xac\xed"):
        raise AnnotationError("it is QuPath's own data file; export the objects as GeoJSON in QuPath.")
    if any(suffix in (".geojson", ".json") for suffix in suffixes):
        return True
    if any(suffix in TEXT_SUFFIXES for suffix in suffixes):
        return False
    raise AnnotationError(
        "it has no known format: GeoJSON, the XML of ASAP, ImageScope, HALO or NDP.view, label TIFF or OME-Zarr, or "
        ".sparseseg."
    )


def _kind(path: Path) -> str:
    """The kind of a file: ``own``, ``project``, ``labels`` or ``text``."""
    if path.is_dir():
        is_project = (path / "project.json").exists() or path.suffix == ".sparseseg"
        return "project" if is_project else "labels"
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise AnnotationError(f"{path} is not a regular file; give an annotation file.")
    if path.suffix.lower() in OWN:
        return "own"  # not opened here, see `annotations.sqlite_file.connect`
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise AnnotationError(f"cannot open {path}: {error.strerror or error}.") from error
    if head.startswith(MAGIC):
        return "own"
    return "labels" if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else "text"


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


def _write_own(annotations: Annotations, target: Path, _slide: SlideFrame | None, overwrite: bool) -> None:
    annotations.save(target, overwrite=overwrite)


def _write_asap(annotations: Annotations, target: Path, slide: SlideFrame | None, _overwrite: bool) -> None:
    write_asap(annotations, target, origin=_origin(slide, "canvas"))


def _write_geojson(annotations: Annotations, target: Path, slide: SlideFrame | None, _overwrite: bool) -> None:
    write_geojson(annotations, target, origin=_origin(slide, "bounds"))


def _write_labels(annotations: Annotations, target: Path, _slide: SlideFrame | None, overwrite: bool) -> None:
    write_labels(annotations, target, overwrite=overwrite)


WRITERS: dict[str, Callable[[Annotations, Path, SlideFrame | None, bool], None]] = {
    ".geojson": _write_geojson,
    ".json": _write_geojson,
    ".xml": _write_asap,
    **dict.fromkeys(OWN, _write_own),
    **dict.fromkeys((*TIFF_SUFFIXES, ".zarr"), _write_labels),
}
"""How `save_annotations` writes each suffix; of several that fit, the longest counts."""


def save_annotations(
    annotations: Annotations,
    path: str | os.PathLike[str],
    *,
    slide: SlideFrame | None = None,
    overwrite: bool = False,
) -> None:
    """Write annotations in the format of the suffix: GeoJSON, ASAP's XML, label image, or the program's own file.

    Parameters
    ----------
    annotations
        What to write.
    path
        File or folder to make.
    slide
        The slide, where its file has a scanned area inside a larger canvas; see `load_annotations`.
    overwrite
        Replace an existing file.

    Raises
    ------
    AnnotationError
        Where the suffix is another, the file exists, or it cannot be written.

    Examples
    --------
    >>> from napari_sparseseg import Annotations, save_annotations
    >>> annotations = Annotations((1000, 2000), classes=["tumour", "stroma"])
    >>> annotations.paint([(100, 100), (100, 400)], 5, 1)
    >>> save_annotations(annotations, "strokes.geojson")
    """
    target = Path(path)
    fitting = [suffix for suffix in WRITERS if target.name.lower().endswith(suffix)]
    if not fitting:
        raise AnnotationError(f"annotations are written as {', '.join(WRITERS)}, not as {target.name}.")
    if target.exists() and not overwrite:
        raise AnnotationError(f"{target} exists already; choose another name, or ask to overwrite it.")
    WRITERS[max(fitting, key=len)](annotations, target, slide, overwrite)


def _own_shape(path: Path, kind: str) -> tuple[int, int]:
    """The slide's shape, where the file says it."""
    if kind == "own":
        return Annotations.load(path).shape
    if kind == "text" and _is_json(path, data := read_bytes(path)):
        shape = shape_in(data)
        if shape is not None:
            return shape
    raise AnnotationError(f"{path.name} does not say how large its slide is; name the slide (--slide).")
