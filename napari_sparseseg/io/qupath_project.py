"""QuPath projects: their slides and classes, and folders and scripts by which annotations and results are exchanged.

QuPath keeps annotations in ``.qpdata`` files, which are Java serialisation and only readable by QuPath. So two Groovy
scripts are written into the project, where QuPath lists them under *Automate > Project scripts*.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.files import is_link, write_atomic
from napari_sparseseg.io.geojson import load_json
from napari_sparseseg.io.qupath_classes import read_classes
from napari_sparseseg.io.text_files import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_sparseseg.config import ClassDef

EXPORT, IMPORT = "napari-sparseseg export annotations", "napari-sparseseg import results"
"""Names of the scripts in QuPath."""
_FOLDER = "napari-sparseseg"
_HEAD = """// Written by napari-sparseseg. Run it once, with the project open; it goes through all of its images.
import qupath.lib.io.PathIO
import java.nio.file.Files

def project = getProject()
if (project == null) {
    println 'Open the project first.'
    return
}
def folder = project.getPath().getParent().resolve('napari-sparseseg').resolve('%s')
"""
_EXPORT_SCRIPT = (
    _HEAD % "annotations"
    + """Files.createDirectories(folder)
int written = 0
for (entry in project.getImageList()) {
    // the image that is open may have changes that are not saved
    def hierarchy = entry.getID() == getProjectEntry()?.getID() ? getCurrentHierarchy() : entry.readHierarchy()
    def annotations = hierarchy.getAnnotationObjects()
    if (annotations.isEmpty()) {
        continue
    }
    def file = folder.resolve(entry.getID() + '.geojson')
    PathIO.exportObjectsAsGeoJSON(file, annotations, PathIO.GeoJsonExportOptions.FEATURE_COLLECTION)
    written++
}
println 'Annotations of ' + written + ' images are in ' + folder
"""
)
_IMPORT_SCRIPT = (
    _HEAD % "results"
    + """int images = 0
for (entry in project.getImageList()) {
    def file = folder.resolve(entry.getID() + '.geojson')
    if (!Files.exists(file)) {
        continue
    }
    def imageData = entry.getID() == getProjectEntry()?.getID() ? getCurrentImageData() : entry.readImageData()
    def objects = PathIO.readObjects(file)
    imageData.getHierarchy().addObjects(objects)
    entry.saveImageData(imageData)
    // so that running the script again adds nothing twice
    Files.move(file, folder.resolve(entry.getID() + '.imported-' + System.currentTimeMillis() + '.geojson'))
    println entry.getImageName() + ': ' + objects.size() + ' objects'
    images++
}
println 'Results of ' + images + ' images were imported. Reopen images that a second viewer shows.'
"""
)
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_IMAGES = 100_000


@dataclass(frozen=True, slots=True)
class QuPathImage:
    """One image of a project."""

    entry: str
    """Its ID, by which the exchanged files are named."""
    name: str
    path: Path | None
    """The slide; None where it is no local file, is missing, or is turned or cropped in QuPath."""
    problem: str = ""
    """Why there is no path, as a clause."""


@dataclass(frozen=True, slots=True)
class QuPathProject:
    """What a ``project.qpproj`` lists."""

    folder: Path
    images: tuple[QuPathImage, ...]
    classes: tuple[ClassDef, ...]

    def annotations_of(self, image: QuPathImage) -> Path:
        """Where the export script puts the annotations of an image."""
        return self.folder / _FOLDER / "annotations" / f"{image.entry}.geojson"

    def results_of(self, image: QuPathImage) -> Path:
        """Where the import script looks for the results of an image."""
        return self.folder / _FOLDER / "results" / f"{image.entry}.geojson"

    def write_scripts(self) -> tuple[Path, Path]:
        """Write both scripts and the folders that they use into the project; gives the scripts.

        Raises
        ------
        AnnotationError
            Where a folder is a link to elsewhere, or a script of the same name was changed.
        """
        scripts = self.folder / "scripts"
        for folder in (
            scripts,
            self.folder / _FOLDER,
            *(self.folder / _FOLDER / n for n in ("annotations", "results")),
        ):
            if is_link(folder):
                raise AnnotationError(f"{folder} is a link to elsewhere; remove it.")
            folder.mkdir(exist_ok=True)
        written = []
        for name, text in ((EXPORT, _EXPORT_SCRIPT), (IMPORT, _IMPORT_SCRIPT)):
            path = scripts / f"{name}.groovy"
            if path.exists() and path.read_bytes() != text.encode():
                raise AnnotationError(f"{path} was changed; rename or remove it, and it is written again.")
            write_atomic(path, lambda part, text=text: part.write_bytes(text.encode()))  # type: ignore[misc]
            written.append(path)
        return written[0], written[1]


def read_project(path: str | os.PathLike[str]) -> QuPathProject:
    """The images and classes of a QuPath project; slides that were moved together with it are found.

    Parameters
    ----------
    path
        ``project.qpproj`` or its folder.

    Raises
    ------
    AnnotationError
        Where it cannot be read, or is no project of QuPath 0.2 or later.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "project.qpproj"
    if not file.exists():
        raise AnnotationError(f"there is no QuPath project {file}. Check the path.")
    try:
        data = load_json(read_bytes(file))
    except AnnotationError as error:
        raise AnnotationError(f"{file.name}: {error}") from error
    entries = data.get("images") if isinstance(data, dict) else None
    if not isinstance(entries, list) or len(entries) > _MOST_IMAGES:
        raise AnnotationError(f"{file} is no project of QuPath 0.2 or later: it lists no images.")
    before = _local_path(data.get("uri"))
    images = tuple(_image(entry, file.parent, before) for entry in entries if isinstance(entry, dict))
    if len({image.entry for image in images}) < len(images):
        raise AnnotationError(f"{file} has two images of the same ID; open and save it in QuPath.")
    classes = file.parent / "classifiers" / "classes.json"
    return QuPathProject(file.parent, images, read_classes(classes) if classes.exists() else ())


def _image(entry: dict[str, Any], folder: Path, before: Path | None) -> QuPathImage:
    number, name = str(entry.get("entryID", "")), entry.get("imageName")
    if not _SAFE_ID.fullmatch(number):
        raise AnnotationError(f"an image of the project has the ID {number[:80]!r}; open and save it in QuPath.")
    builder = entry.get("serverBuilder")
    builder = builder if isinstance(builder, dict) else {}
    uri = next(_uris(builder), "")
    shown = name if isinstance(name, str) and name else Path(unquote(urlsplit(uri).path)).name or f"image {number}"
    if builder.get("builderType", "uri") != "uri":
        return QuPathImage(number, shown, None, "it is turned, cropped or changed in QuPath, so its pixels are others")
    recorded = _local_path(uri)
    if recorded is None:
        return QuPathImage(number, shown, None, f"it is no local file ({uri[:200] or 'no address'})")
    candidates = [recorded, folder / recorded.name, folder.parent / recorded.name]
    if before is not None and before.parent != folder:
        candidates.insert(1, folder / os.path.relpath(recorded, before.parent))
    found = next((c for c in candidates if c.is_file() or (c.name.lower().endswith(".zarr") and c.is_dir())), None)
    return QuPathImage(number, shown, found, "" if found else f"there is no file {recorded}")


def _uris(builder: Any, depth: int = 0) -> Iterator[str]:
    """Addresses in a server builder and in those that it wraps."""
    if isinstance(builder, dict) and depth < 10:
        if isinstance(builder.get("uri"), str):
            yield builder["uri"]
        for value in builder.values():
            yield from _uris(value, depth + 1)


def _local_path(uri: Any) -> Path | None:
    """The path of a ``file:`` address, of Windows too."""
    if not isinstance(uri, str) or "\0" in uri:
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        return None
    path = unquote(parts.path)
    if re.match(r"/[A-Za-z]:/", path):  # file:/C:/slides/a.svs
        path = path[1:]
    return Path(path) if path else None
