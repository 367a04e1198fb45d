"""Which slide is open, and whether its file still holds it: files are overwritten while somebody looks at them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideChangedError, SlideError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.slides.slide import Contents

Stamp = tuple[tuple[int, ...], ...]


def file_stamp(paths: Sequence[str]) -> Stamp:
    """Size, times and inode of each file.

    Raises
    ------
    OSError
        Where one of them is away.
    """
    found = [os.stat(path) for path in paths]
    return tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in found)


class Identity:
    """The fingerprint of an open slide, and a check that costs one question to the file system.

    A file with another stamp is hashed again: one that was only touched, or copied over by itself, is the same slide. A
    slide that was found changed stays so: what was decoded of it since cannot be told apart.

    Parameters
    ----------
    contents
        What was opened; its `watched` files are looked at, if it has any.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents, self._stamp = contents, contents.stamp
        self._fingerprint = ""
        self._changed = False
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """See `Slide.fingerprint`; of the slide that was opened, whatever lies there now."""
        if not self._fingerprint:
            found = self._contents.fingerprint()
            self.check()
            self._fingerprint = found
        return self._fingerprint

    def check(self) -> None:
        """Ask for the file; not on a GUI's thread, for a network share may let one wait.

        A file that is away is not another one: reads say what is wrong, and it may come back.

        Raises
        ------
        SlideChangedError
            When another slide lies there than the one that was opened.
        """
        if not self._changed and self._look() != self._stamp:
            with self._lock:
                self._changed = self._changed or self._is_another()
        if self._changed:
            raise SlideChangedError(self._contents.path)

    def _look(self) -> Stamp:
        try:
            return file_stamp(self._contents.watched)
        except OSError:
            return self._stamp

    def _is_another(self) -> bool:
        """Hash the file, and take over its stamp where it is the same."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        try:
            another = not self._fingerprint or self._contents.fingerprint() != self._fingerprint
        except (OSError, SlideError):
            return False
        if not another:
            self._stamp = stamp
        return another
