"""Writing files so that they are whole or absent, and where this program keeps its own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUMMARY = "summary.csv"
"""The table of a batch of predicted slides, in their folder."""
# The longer ones first: of "a.ome.tif" the whole ".ome.tif" is the suffix.
_SLIDE_SUFFIXES = (
    ".ome.tiff", ".ome.tif", ".ome.btf", ".ome.tf2", ".ome.tf8", ".ome.zarr", ".qptiff", ".dicom", ".tiff", ".mrxs",
    ".ndpi", ".ndpis", ".svslide", ".zarr", ".jpeg", ".vms", ".vmu", ".svs", ".scn", ".bif", ".tif", ".btf", ".dcm",
    ".czi", ".isyntax", ".i2syntax", ".png", ".jpg", ".jp2", ".jxl", ".webp", ".bmp", ".gif", ".stk", ".lsm", ".n5",
)  # fmt: skip


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` by `write(temporary)`, flush to disk, then rename: readers see the old file or the new one.

    Raises
    ------
    OSError
        What the file system says (full, read-only); the old file is then untouched and the temporary is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


class OwnFiles:
    """Files that one object has written: it may replace them as long as nobody else has changed them."""

    def __init__(self) -> None:
        self._stamps: dict[Path, tuple[int, ...]] = {}

    def require(self, path: Path, error: type[Exception], *, overwrite: bool) -> None:
        """Raise `error` where a file is there that this object did not write, unless it may be overwritten."""
        if not overwrite and path.exists() and self._stamps.get(path.resolve()) != _stamp(path):
            raise error(f"{path} exists already; choose another name, or ask to overwrite it (overwrite=True).")

    def add(self, path: Path) -> None:
        """Note that a file was just written."""
        self._stamps[path.resolve()] = _stamp(path)


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def result_name(path: str | os.PathLike[str]) -> str:
    """The name of a slide without its known suffix, for the files made from it; dots inside the name stay."""
    name = Path(path).name
    suffix = next((s for s in _SLIDE_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] or name or "slide"


def is_link(path: Path) -> bool:
    """Whether a path leads elsewhere: a symbolic link, or a junction on Windows (as Python knows them from 3.12)."""
    junction: Callable[[], bool] | None = getattr(path, "is_junction", None)
    return path.is_symlink() or (junction is not None and junction())


def links_in(folder: Path) -> Iterator[Path]:
    """Links in a folder and in the folders below, which are not followed; of files only the names are read."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink() or (is_folder and is_link(Path(entry))):
                    yield Path(entry)
                elif is_folder:
                    waiting.append(Path(entry))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def state_folder() -> Path:
    """Where unsaved work and the list of recent projects are; ``NAPARI_SPARSESEG_HOME`` overrides it.

    Raises
    ------
    ProjectError
        When the user has no home folder.
    """
    from platformdirs import user_state_path

    if override := os.environ.get("NAPARI_SPARSESEG_HOME"):
        return Path(override)
    try:
        folder = user_state_path("napari-sparseseg")
    except RuntimeError:  # a user without HOME and without a passwd entry; older platformdirs return "~"
        folder = Path("~")
    if not folder.is_absolute():
        raise ProjectError("there is no home folder for unsaved work; set NAPARI_SPARSESEG_HOME to a folder.")
    return folder


def split_regions(text: str) -> tuple[str, str]:
    """``FILE[:CLASS]`` or ``[:]CLASS`` as file and class, each of which may be empty.

    Names of classes may have colons, and so may paths: the file is the longest beginning that exists.
    """
    ends = [len(text), *(k for k in range(len(text) - 1, 0, -1) if text[k] == ":")]
    end = next((k for k in ends if not text.startswith(":") and Path(text[:k]).exists()), None)
    return ("", text.removeprefix(":")) if end is None else (text[:end], text[end + 1 :])
