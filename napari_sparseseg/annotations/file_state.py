"""What an annotation file states about itself: how much is in it, and whether a program writes to it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.annotations.sqlite_file import DamagedFileError, atomic, connect, is_blank

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
        False for a copy that was made while a program wrote to the file, and lacks its write-ahead log.
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
    has_log = path.with_name(path.name + "-wal").exists()
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
            raise DamagedFileError(path, str(error).rstrip(".")) from error


def mark_open(connection: sqlite3.Connection, is_open: bool) -> None:
    """State in the file itself, not only in its log, that a program writes to it; a copy without the log shows it.

    Ends the open transaction.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        return  # no log, so nothing can be missing
    with atomic(connection):
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', ?)", (json.dumps(is_open),))
    connection.execute("PRAGMA wal_checkpoint(FULL)")
