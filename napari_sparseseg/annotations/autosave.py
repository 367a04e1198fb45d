"""Keeps annotations in their file: each edit in one durable transaction."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.sqlite_file import (
    DROP_CHUNK,
    PUT_CHUNK,
    PUT_META,
    PUT_STROKE,
    SCHEMA,
    Contents,
    FileInUseError,
    NotWritableError,
    chunk_row,
    class_rows,
    connect,
    fill,
    is_blank,
    migrate,
    stroke_row,
)
from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from pathlib import Path

    from napari_sparseseg.annotations.history import Edit
    from napari_sparseseg.annotations.state import State

_BROKEN = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB)
"""Errors after which a file has to be opened anew."""


class FileKeeper:
    """Writes edits to an annotation file that it alone may write to until `close`.

    Parameters
    ----------
    path
        An annotation file, or where one is to be made.

    Raises
    ------
    FileInUseError
        Where another program writes to it.
    NotWritableError
        Where it cannot be written.
    AnnotationError
        Where it is no annotation file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.problem: str | None = None
        self.tokens: set[str] = set()
        """Of all states that were written here: a file that holds one of them has nothing of anybody else's."""
        self._connection, self.is_new = _open(path)
        self._identity, self._broken = _identity(self.path), False

    def keep(self, state: State, edit: Edit, *, revert: bool) -> None:
        """Write an edit; what failed is said by `complain`, and everything is written again with the next edit."""
        if self.problem is not None:
            self.keep_all(state.contents())
            return
        gone, come = (edit.added, edit.removed) if revert else (edit.removed, edit.added)
        try:
            run = self._connection.executemany
            for layer, change in enumerate((edit.scribbles, edit.dense)):
                after = {at: pair[0 if revert else 1] for at, pair in change.chunks.items()} if change else {}
                run(PUT_CHUNK, [chunk_row(layer, at, data) for at, data in after.items() if data is not None])
                run(DROP_CHUNK, [(layer, level, *key) for (level, key), data in after.items() if data is None])
            run("DELETE FROM strokes WHERE id = ?", [(s.id,) for s in gone])
            run(PUT_STROKE, [stroke_row(s) for s in come])
            self._finish(state)
        except (sqlite3.Error, AnnotationError) as error:
            self._fail(error)

    def keep_classes(self, state: State) -> None:
        """Write the class table; fails as `keep`."""
        if self.problem is not None:
            self.keep_all(state.contents())
            return
        try:
            self._finish(state)
        except (sqlite3.Error, AnnotationError) as error:
            self._fail(error)

    def _finish(self, state: State) -> None:
        contents = state.contents(bare=True)
        self.tokens.add(contents.token)  # a commit that is said to have failed may have succeeded
        self._connection.executemany(PUT_META, contents.meta())
        self._connection.execute("DELETE FROM classes")
        self._connection.executemany("INSERT INTO classes VALUES (?, ?, ?, ?)", class_rows(state.classes))
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        self._require_in_place()

    def keep_all(self, contents: Contents) -> None:
        """Write everything, into the file opened anew where it was lost; fails as `keep`."""
        try:
            if self.problem is not None and (self._broken or _identity(self.path) != self._identity):
                self._reopen()
            self.tokens.add(contents.token)
            self._leave()
            fill(self._connection, contents)
            self._connection.execute("BEGIN IMMEDIATE")
            self._require_in_place()
            self.problem = None
        except (sqlite3.Error, OSError, AnnotationError) as error:
            self._fail(error)

    def _require_in_place(self) -> None:
        """SQLite does not notice that a file it writes to is no longer the one of that name."""
        if _identity(self.path) != self._identity:
            raise AnnotationError("the file was removed or replaced while it was open here")

    def _reopen(self) -> None:
        """After a share has come back, or the file was removed; never over what somebody else has written."""
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

    def _leave(self) -> None:
        with suppress(sqlite3.Error):  # a connection that is closed or dead has nothing to take back
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _fail(self, error: Exception) -> None:
        self.problem = str(error).rstrip(".")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self._broken = code in _BROKEN or isinstance(error, sqlite3.ProgrammingError | OSError | AnnotationError)
        self._leave()

    def complain(self) -> None:
        """Raise what went wrong with the last write.

        Raises
        ------
        AnnotationError
            What was drawn is in memory only, as long as this goes on.
        """
        if self.problem is not None:
            raise AnnotationError(
                f"what you drew could not be written to {self.path}: {self.problem}. It is in memory only; make "
                "room or save to another place before you close."
            )

    @property
    def saved(self) -> bool:
        """Whether the last write succeeded."""
        return self.problem is None

    def close(self) -> None:
        """Give the file free; the log is merged into it."""
        self._leave()
        self._connection.close()


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that holds the write lock, and whether the file has yet to be filled."""
    is_new = not path.exists() or path.stat().st_size == 0
    connection = connect(path, create=is_new, write=True)
    try:
        # Write-ahead where the file system can; the log is synced at every commit.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if not is_new and not is_blank(connection):
            migrate(connection)
        connection.execute("PRAGMA busy_timeout = 500")
        connection.execute("BEGIN IMMEDIATE")
        if is_blank(connection):  # killed while it was being made
            is_new = True
        if not is_new:  # a write, lest a file that cannot be written to is found out at the first stroke
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
    except sqlite3.Error as error:
        connection.close()
        if "locked" in str(error):
            raise FileInUseError(
                f"{path} is open for writing in another program or window. Close it there, or look at it with "
                "Annotations.load, which does not keep changes."
            ) from error
        kind = NotWritableError if isinstance(error, sqlite3.OperationalError) else AnnotationError
        raise kind(f"cannot write to {path}: {error}.") from error
    return connection, is_new


def _identity(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """What tells a file and its log from others of the same names."""
    out: list[tuple[int, int] | None] = []
    for name in (path.name, path.name + "-wal"):
        try:
            found = path.with_name(name).stat()
            out.append((found.st_dev, found.st_ino))
        except OSError:
            out.append(None)
    return tuple(out)
