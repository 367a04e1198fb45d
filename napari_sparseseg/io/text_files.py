"""Reading and writing whole text files: bounded, also compressed ones, and replaced atomically."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.files import write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import TextIO

MAX_BYTES = 2 << 30
TEXT_SUFFIXES = (".geojson", ".json", ".xml", ".annotations", ".ndpa")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a file; of a gzip file or a zip file with one annotation file in it, decompressed.

    Raises
    ------
    AnnotationError
        Beginning with the file's name: where it cannot be opened, is too large, or damaged.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            data = _bounded(file)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as inner:
                return _bounded(inner)
        if data[:4] == b"PK\x03\x04":
            return _unzipped(data)
        return data
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise AnnotationError(f"{source.name}: it cannot be decompressed: {error}.") from error
    except OSError as error:
        raise AnnotationError(f"{source.name}: it cannot be opened: {error.strerror or error}.") from error
    except AnnotationError as error:
        raise AnnotationError(f"{source.name}: {error}") from error


def _bounded(file: IO[bytes] | gzip.GzipFile) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"the file is larger than {MAX_BYTES >> 30} GB; split it.")
    return data


def _unzipped(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith(TEXT_SUFFIXES) and not n.startswith("__MACOSX")]
        if len(names) != 1:
            raise AnnotationError(
                f"the zip file contains {len(names)} annotation files ({', '.join(TEXT_SUFFIXES)}), not one; unpack it."
            )
        with archive.open(names[0]) as inner:
            return _bounded(inner)


def write_text(path: str | os.PathLike[str], write: Callable[[TextIO], None]) -> None:
    """Replace a text file atomically.

    Raises
    ------
    AnnotationError
        Where the file cannot be written.
    """
    target = Path(path)

    def write_part(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            write(file)

    try:
        write_atomic(target, write_part)
    except OSError as error:
        raise AnnotationError(f"cannot write {target}: {error.strerror or error}.") from error
