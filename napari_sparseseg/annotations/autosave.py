"""Writes every edit of annotations to their file, each in one durable transaction."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.file_state import mark_open
from napari_sparseseg.annotations.sqlite_file import (
    SCHEMA,
    FileInUseError,
    NotWritableError,
    atomic,
    connect,
    is_blank,
    migrate,
    read_stored,
    roll_back,
    write_all,
    write_edit,
)
from napari_sparseseg.annotations.stored import Tally
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from napari_sparseseg.annotations.document import AnnotationDocument, Edit
    from napari_sparseseg.annotations.stored import StoredAnnotations

# Errors after which a file has to be opened again.
_BROKEN = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl+C waits for the end of the block: half an edit would be in memory and not in its file."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


class Autosave:
    """An annotation file that no other program may write to until `close`.

    Parameters
    ----------
    path
        An annotation file, or where one is to be created.

    Attributes
    ----------
    tokens
        Of all states that were written to this file: a file that holds one of them holds nobody else's work.
    version
        Of the annotations that were last written or loaded.

    Raises
    ------
    FileInUseError
        Where another program writes to it.
    NotWritableError
        Where it cannot be written.
    AnnotationError
        Where it is not an annotation file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.tokens: set[str] = set()
        self._problem: str | None = None
        self._tally = Tally()
        self.version = -1
        self._connection, self._is_new = _open(path)
        self._identity, self._broken = _identity(self.path), False

    @classmethod
    def bind(cls, path: Path, document: AnnotationDocument) -> tuple[Self, bool]:
        """The file, holding the same as `document`; and whether the document was filled from it.

        A new file is filled from the document, an empty document from the file.

        Raises
        ------
        AnnotationError
            As the constructor, and where file and document hold different annotations.
        """
        file = cls(path)
        try:
            found = None if file._is_new else read_stored(path)
            if found is None:
                file.write_all(document)
                file.raise_last_error()
                return file, False
            file.tokens.add(found.token)
            file._tally, file.version = found.tally or file._tally, found.version
            file._mark_open()
            adopted = found.token != document.token
            if adopted:
                _require_adoptable(path, found, document)
                document.restore(found)
        except AnnotationError:
            file.close()
            raise
        return file, adopted

    @property
    def saved(self) -> bool:
        """Whether the last write succeeded."""
        return self._problem is None

    def write(self, document: AnnotationDocument, edit: Edit | None) -> None:
        """Write an edit, or only the class table; durable on return.

        `raise_last_error` says what failed; everything is then written with the next edit.
        """
        # An edit that was interrupted on its way here is in memory only.
        if self._problem is not None or document.version != self.version + (edit is not None):
            self.write_all(document)
            return
        try:
            with self._locked():
                stored = document.stored(labels=False)
                stored.tally = self._tally.after(edit)
                self.tokens.add(stored.token)  # a commit that is reported as failed may have succeeded
                write_edit(self._connection, stored, edit)
            self._tally, self.version = stored.tally, stored.version
            self._require_in_place()
        except (sqlite3.Error, AnnotationError, MemoryError) as error:
            self._fail(error)

    def write_all(self, document: AnnotationDocument) -> None:
        """Write everything, opening the file again where it was lost; fails as `write`."""
        try:
            if self._problem is not None and (self._broken or _identity(self.path) != self._identity):
                self._reopen()
            stored = document.stored()
            self.tokens.add(stored.token)
            with self._locked():
                write_all(self._connection, stored)
            self._tally, self.version = stored.tally or self._tally, stored.version
            self._mark_open()
            self._require_in_place()
            self._problem = None
        except (sqlite3.Error, OSError, AnnotationError, MemoryError) as error:
            self._fail(error)

    def is_at(self, path: Path) -> bool:
        """Whether the file has this name now: it may have been renamed."""
        return self._identity[0] is not None and _identity(path)[0] == self._identity[0]

    def raise_last_error(self) -> None:
        """Raise what went wrong with the last write.

        Raises
        ------
        AnnotationError
            What was drawn is in memory only until a write succeeds.
        """
        if self._problem is not None:
            raise AnnotationError(
                f"your strokes could not be written to {self.path}: {self._problem}. They are in memory only; make "
                "room, or save to another place before you close."
            )

    def close(self) -> None:
        """Release the lock and checkpoint the write-ahead log."""
        roll_back(self._connection)
        with suppress(sqlite3.Error):  # full or away: the file stays marked as open
            mark_open(self._connection, False)
        self._connection.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One transaction; the write lock is taken again at once, so that no other program can write in between."""
        with atomic(self._connection):
            yield
        self._connection.execute("BEGIN IMMEDIATE")

    def _mark_open(self) -> None:
        with suppress(sqlite3.Error):  # a full disk: what can be read must open all the same
            mark_open(self._connection, True)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise FileInUseError(f"{self.path} was opened by another program at the same time; try again.") from error

    def _require_in_place(self) -> None:
        # SQLite does not notice that the file it writes to no longer has that name.
        if _identity(self.path) != self._identity:
            raise AnnotationError("the file was removed or replaced while it was open here")

    def _reopen(self) -> None:
        """After a share came back or the file was removed; refuses to overwrite what another program has written."""
        self.close()
        (file, log), now = self._identity, _identity(self.path)
        if now[0] not in (None, file) and now[1] == log:  # our log belongs to the file that was there before
            for tail in ("-wal", "-shm"):
                self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
        self._connection, is_new = _open(self.path)
        self._identity, self._broken = _identity(self.path), False
        if not is_new:
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'token'").fetchone()
            if row is None or json.loads(row[0]) not in self.tokens:
                self.close()
                raise AnnotationError("another program put other annotations in its place")

    def _fail(self, error: Exception) -> None:
        self._problem = str(error).rstrip(".")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self._broken = code in _BROKEN or isinstance(
            error, sqlite3.ProgrammingError | OSError | AnnotationError | MemoryError
        )
        roll_back(self._connection)


def _require_adoptable(path: Path, found: StoredAnnotations, document: AnnotationDocument) -> None:
    if found.shape != document.shape:
        raise AnnotationError(
            f"{path} was drawn on a slide of {found.shape} pixels, this one has {document.shape}; open the slide it "
            "belongs to."
        )
    if document.version > 0:
        raise AnnotationError(
            f"{path} holds other annotations; save to another file, or remove it first if it is not needed."
        )


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that holds the write lock, and whether the file has yet to be filled."""
    is_new = not path.exists() or path.stat().st_size == 0
    connection = connect(path, create=is_new, write=True)
    try:
        # A write-ahead log where the file system supports it; the log is synced at every commit.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if not is_new and not is_blank(connection):
            migrate(connection)
        connection.execute("PRAGMA busy_timeout = 500")
        connection.execute("BEGIN IMMEDIATE")
        is_new = is_new or is_blank(connection)  # blank: killed while it was being created
        if not is_new:  # a write, so that a file that cannot be written is noticed before the first stroke
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
    except sqlite3.Error as error:
        connection.close()
        if "locked" in str(error):
            raise FileInUseError(
                f"{path} is open for writing in another program or window. Close it there, or read it with "
                "Annotations.load, which does not save changes."
            ) from error
        kind = NotWritableError if isinstance(error, sqlite3.OperationalError) else AnnotationError
        raise kind(f"cannot write to {path}: {error}.") from error
    return connection, is_new


def _identity(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """(device, inode) of a file and of its log; None for one that does not exist."""
    out: list[tuple[int, int] | None] = []
    for name in (path.name, path.name + "-wal"):
        try:
            found = path.with_name(name).stat()
            out.append((found.st_dev, found.st_ino))
        except OSError:
            out.append(None)
    return tuple(out)
