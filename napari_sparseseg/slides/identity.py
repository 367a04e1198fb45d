"""Which slide is open, and whether its file on disk is still the same: files are overwritten while they are open."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideChangedError, SlideError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.slides.slide import SlideContents

Stamp = tuple[tuple[int, ...], ...]
_SAMPLE = 65536
_SAMPLES = 8


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 (hex digits) of the size and of ten samples of 64 kB: head, tail and eight in between.

    Raises
    ------
    SlideError
        If the file can no longer be read.
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


def image_fingerprint(file: str, image: int) -> str:
    """Fingerprint of an image that is not the default one of its file, given the fingerprint of the file."""
    return hashlib.sha256(f"{file} image {image}".encode()).hexdigest()


def file_stamp(paths: Sequence[str]) -> Stamp:
    """Size, modification and change time (ns) and inode of each file.

    Raises
    ------
    OSError
        If one of them does not exist.
    """
    found = [os.stat(path) for path in paths]
    return tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in found)


class Identity:
    """The fingerprint of an open slide, and a check for changes that costs one ``stat``.

    A file with a new stamp is hashed again; if only its times changed, it is the same slide. A changed slide stays
    changed, because tiles decoded in the meantime may come from either file.

    Parameters
    ----------
    contents
        The opened slide; the files in `watched` are checked.
    """

    def __init__(self, contents: SlideContents) -> None:
        self._contents, self._stamp = contents, contents.stamp
        self._fingerprint = ""
        self._changed = False
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """See `Slide.fingerprint`: of the slide as it was opened, even if the file has changed since."""
        if not self._fingerprint:
            found = self._contents.fingerprint()
            self.check()
            self._fingerprint = found
        return self._fingerprint

    def check(self) -> None:
        """Compare the file with the one that was opened. Not for the GUI thread: stat() on a network share can block.

        A missing file does not count as changed: reads report the error, and the file may come back.

        Raises
        ------
        SlideChangedError
            If the path now holds another slide.
        """
        if not self._changed and self._current_stamp() != self._stamp:
            with self._lock:
                self._changed = self._changed or self._was_replaced()
        if self._changed:
            raise SlideChangedError(self._contents.path)

    def _current_stamp(self) -> Stamp:
        try:
            return file_stamp(self._contents.watched)
        except OSError:
            return self._stamp

    def _was_replaced(self) -> bool:
        """Hash the file again; if it is the same, remember its new stamp."""
        stamp = self._current_stamp()
        if stamp == self._stamp:
            return False
        try:
            replaced = not self._fingerprint or self._contents.fingerprint() != self._fingerprint
        except (OSError, SlideError):
            return False
        if not replaced:
            self._stamp = stamp
        return replaced
