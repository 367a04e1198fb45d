"""Files read at given positions by many threads, and a hash that knows a file again after a move."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path

_SAMPLE = 65536
_SAMPLES = 8


class PositionedFile:
    """A file opened for reads at absolute positions; no shared offset, so threads need no lock (on Windows: one)."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed by close())
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer where the file ends."""
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 over the size and ten samples of 64 kB: head, tail and eight spread evenly; small files whole.

    Raises
    ------
    SlideError
        Where the file cannot be read any more.
    """
    try:
        size = os.stat(path).st_size
        digest = hashlib.sha256(str(size).encode())
        starts = {0, max(0, size - _SAMPLE), *(size * k // (_SAMPLES + 1) for k in range(1, _SAMPLES + 1))}
        with open(path, "rb") as file:
            for start in sorted(starts):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise SlideError(f"cannot read slide {path}: {error.strerror or error}. Is it still there?") from error
    return digest.hexdigest()
