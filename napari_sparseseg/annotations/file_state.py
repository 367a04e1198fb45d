"""What an annotation file states about itself: how much is in it, and whether a program writes to it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.sqlite_file import atomic, connect, is_blank, unreadable
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What an annotation file states about itself.

    Attributes
    ----------
    strokes, version
        Number of strokes and dense regions; version of the annotations.
    complete
        False for a copy that was made while a program wrote to the file, and lacks its write-ahead log or a part of it.
    """

    strokes: int
    version: int
    complete: bool


def summary(path: Path) -> FileSummary:
    """What is in an annotation file, without reading its labels; nothing where it is missing or empty.

    Raises
    ------
    AnnotationError
        Where it is not an annotation file, or is damaged.
    """
    log = path.with_name(path.name + "-wal")
    has_log = log.exists() and not _is_torn(log)
    if not path.exists() or path.stat().st_size == 0:
        return FileSummary(0, 0, complete=not has_log)
    with closing(connect(path)) as connection:
        try:
            if is_blank(connection):
                return FileSummary(0, 0, complete=True)
            strokes = connection.execute("SELECT count(*) FROM strokes").fetchone()[0]
            rows = connection.execute("SELECT key, value FROM meta WHERE key IN ('version', 'open')")
            meta = {key: json.loads(value) for key, value in rows}
            return FileSummary(int(strokes), int(meta.get("version", 0)), has_log or not meta.get("open", False))
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
            raise unreadable(path, error) from error


def classes_in(path: Path) -> tuple[ClassDef, ...]:
    """The classes that an annotation file uses, without reading its labels; none where it is missing or empty.

    Raises
    ------
    AnnotationError
        Where it is not an annotation file, or is damaged.
    """
    if not path.exists() or path.stat().st_size == 0:
        return ()
    with closing(connect(path)) as connection:
        try:
            if is_blank(connection):
                return ()
            used = {row[0] for row in connection.execute("SELECT DISTINCT class_id FROM strokes")}
            row = connection.execute("SELECT value FROM meta WHERE key = 'counts'").fetchone()
            counted = None if row is None else json.loads(row[0])
            rows = connection.execute("SELECT id, name, colour FROM classes ORDER BY position").fetchall()
            if counted is not None:
                used |= {int(label) for layer in counted for label, n in layer if n}
            return tuple(c for c in (ClassDef(*row) for row in rows) if counted is None or c.id in used)
        except (sqlite3.Error, ValueError, TypeError, RecursionError, SparseSegError) as error:
            raise unreadable(path, error) from error


def _is_torn(log: Path) -> bool:
    """Whether a log is a copy that was begun before SQLite started the log again from its first page, and ended after.

    SQLite would read it up to the last frame of the old log. Each restart adds 1 to the first salt, which is in the
    header and in every frame (see "WAL file format" in SQLite's documentation).
    """
    with log.open("rb") as file:
        header = file.read(32)
        page = int.from_bytes(header[8:12], "big")
        if len(header) < 32 or page < 512:
            return False
        salt = int.from_bytes(header[16:20], "big")
        while len(frame := file.read(24)) == 24:
            # Frames that are older are what the log held before its last restart.
            if 0 < (int.from_bytes(frame[8:12], "big") - salt) % (1 << 32) < 1 << 31:
                return True
            file.seek(page, 1)
    return False


def mark_open(connection: sqlite3.Connection, is_open: bool) -> None:
    """State in the file itself, not only in its log, that a program writes to it; a copy without the log shows it.

    Ends the open transaction.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        return  # no log, so nothing can be missing
    with atomic(connection):
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', ?)", (json.dumps(is_open),))
    connection.execute("PRAGMA wal_checkpoint(FULL)")
