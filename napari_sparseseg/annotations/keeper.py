"""Keeps annotations in their file: each edit in one durable transaction."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.store import (
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
        self.is_new = not path.exists() or path.stat().st_size == 0
        self.problem: str | None = None
        self._connection = connect(path, create=self.is_new)
        try:
            # Write-ahead where the file system can; the log is synced at every commit.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            if not self.is_new and not is_blank(self._connection):
                migrate(self._connection)
            self._connection.execute("PRAGMA busy_timeout = 500")
            self._connection.execute("BEGIN IMMEDIATE")
            if is_blank(self._connection):  # killed while it was being made
                self.is_new = True
            if not self.is_new:  # a write, lest a file that cannot be written to is found out at the first stroke
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        except sqlite3.Error as error:
            self._connection.close()
            if "locked" in str(error):
                raise FileInUseError(
                    f"{path} is open for writing in another program or window. Close it there, or look at it with "
                    "Annotations.load, which does not keep changes."
                ) from error
            kind = NotWritableError if isinstance(error, sqlite3.OperationalError) else AnnotationError
            raise kind(f"cannot write to {path}: {error}.") from error

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
        except sqlite3.Error as error:
            self._fail(error)

    def keep_classes(self, state: State) -> None:
        """Write the class table; fails as `keep`."""
        if self.problem is not None:
            self.keep_all(state.contents())
            return
        try:
            self._finish(state)
        except sqlite3.Error as error:
            self._fail(error)

    def _finish(self, state: State) -> None:
        self._connection.executemany(PUT_META, state.contents(bare=True).meta())
        self._connection.execute("DELETE FROM classes")
        self._connection.executemany("INSERT INTO classes VALUES (?, ?, ?, ?)", class_rows(state.classes))
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")

    def keep_all(self, contents: Contents) -> None:
        """Write everything; fails as `keep`."""
        try:
            self._leave()
            fill(self._connection, contents)
            self._connection.execute("BEGIN IMMEDIATE")
            self.problem = None
        except sqlite3.Error as error:
            self._fail(error)

    def _leave(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _fail(self, error: sqlite3.Error) -> None:
        self.problem = str(error)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

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
