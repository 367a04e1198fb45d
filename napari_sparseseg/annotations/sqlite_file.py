"""The annotation file: SQLite, one transaction per edit.

Labels are stored as the packed chunks of the quadtrees, so that nothing has to be drawn when a file is opened; strokes
are stored as vectors beside them, for training and for rescue. Every blob has a CRC. A writer holds SQLite's write lock
between its transactions too: a second program can read but not write, and the lock of a killed program is released.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from napari_sparseseg.annotations.packing import unpack
from napari_sparseseg.annotations.stored import (
    StoredAnnotations,
    Tally,
    chunk_row,
    meta_rows,
    read_chunk,
    read_stroke,
    stroke_row,
)
from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import AnnotationError, SparseSegError
from napari_sparseseg.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from napari_sparseseg.annotations.document import Edit
    from napari_sparseseg.annotations.pyramid import Key
    from napari_sparseseg.annotations.strokes import Stroke

APPLICATION_ID = 0x4E535347
SCHEMA = 1
MAX_VALUE = 1 << 28  # bytes of one value, so that a forged file cannot make us allocate more at once
MAGIC = b"SQLite format 3\0"
_CREATE = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE classes (position INTEGER PRIMARY KEY, id INTEGER NOT NULL, name TEXT NOT NULL, colour TEXT NOT NULL);
CREATE TABLE strokes (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, class_id INTEGER NOT NULL, radius REAL NOT NULL,
    y INTEGER NOT NULL, x INTEGER NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
    rings TEXT NOT NULL, points BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE chunks (layer INTEGER NOT NULL, level INTEGER NOT NULL, i INTEGER NOT NULL, j INTEGER NOT NULL,
    data BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (layer, level, i, j));
"""
# Scripts that bring a file of schema k + 1 to k + 2; run inside one transaction when an older file is opened.
MIGRATIONS: tuple[str, ...] = ()
_PUT_CHUNK = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)"
_DROP_CHUNK = "DELETE FROM chunks WHERE layer = ? AND level = ? AND i = ? AND j = ?"
_PUT_STROKE = "INSERT OR REPLACE INTO strokes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MAX_ID = 1 << 62
"""Stroke numbers stay below this; SQLite's integers end at 2**63."""
_PUT_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"

_TALLY = """
SELECT (SELECT count(*) FROM strokes), (SELECT count(*) FROM chunks),
    (SELECT ifnull(sum(crc), 0) FROM strokes) + (SELECT ifnull(sum(crc), 0) FROM chunks)
"""


class FileInUseError(AnnotationError):
    """Another program has the annotation file open for writing."""


class BlankFileError(AnnotationError):
    """The annotation file is empty: the program was killed while it created it."""


class NotWritableError(AnnotationError):
    """The annotation file cannot be written: permission denied, or no room."""


class DamagedFileError(AnnotationError):
    """An annotation file that cannot be read completely; `rescue` recovers what it can."""

    def __init__(self, path: Path, reason: str, found: str = "") -> None:
        self.path, self.reason = path, reason
        hint = f" {found}" if found else ""
        super().__init__(
            f"{path} is damaged: {reason}.{hint} "
            "`napari_sparseseg.annotations.rescue(path)` returns annotations with what can be recovered."
        )


# ---------------------------------------------------------------------- connections
@contextmanager
def atomic(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction: committed at the end of the block, rolled back where it raises.

    A transaction that is open already, because it holds the write lock, becomes this one.
    """
    try:
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """Discard the open transaction, if any, and release its lock."""
    with suppress(sqlite3.Error):  # nothing can be rolled back on a closed or broken connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def connect(path: Path, *, create: bool = False, write: bool = False) -> sqlite3.Connection:
    """Open a file; read-only where it cannot be written.

    Raises
    ------
    AnnotationError
        Where it is not an annotation file, or was written by a newer version.
    """
    # The file is read through SQLite only: closing any other handle of it would drop all locks of this process (POSIX),
    # and another program could remove the log into which the next strokes are written.
    if not create:
        _require_file(path)
    last: sqlite3.Error | None = None
    for mode in ["rwc"] if create else _modes(path, write=write):
        try:
            uri = f"{path.resolve().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=2.0, check_same_thread=False)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
            connection.execute("PRAGMA schema_version").fetchone()
            if not create:
                _require_ours(path, connection)
        except sqlite3.Error as error:
            last = error
        else:
            return connection
    if create:
        raise NotWritableError(
            f"cannot write {path}: {last}. Does the folder exist, and may you write to it?"
        ) from last
    if getattr(last, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
        raise _foreign(path) from last
    raise unreadable(path, last) from last


# Extended result codes of writes that SQLite makes before it can read: its log index, a log to be recovered.
_WRITES = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_TRUNCATE,
           sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP)  # fmt: skip


def unreadable(path: Path, error: Exception | None, found: str = "") -> AnnotationError:
    """Why a file cannot be read: there is no room for what SQLite writes beside it, or it is damaged."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL or code in _WRITES:
        return NotWritableError(
            f"cannot open {path}: {error}. SQLite needs room beside the file to read it, and nothing is wrong with it: "
            "make room on the disk, then open it again."
        )
    return DamagedFileError(path, str(error).rstrip("."), found)


def _modes(path: Path, *, write: bool) -> list[str]:
    if path.with_name(path.name + "-wal").exists():
        # Another program may be writing: a read-only connection does not checkpoint or delete the log on closing.
        return ["rw", "ro"] if write else ["ro", "rw"]
    # A log cannot be created in a read-only folder; `immutable` does without one.
    return ["rw", "ro", "ro&immutable=1"]


def _foreign(path: Path) -> AnnotationError:
    return AnnotationError(f"{path} is not an annotation file of this program; open a .sparseseg or .sqlite file.")


def _require_file(path: Path) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise AnnotationError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        raise _foreign(path)
    if not os.access(path, os.R_OK):
        raise AnnotationError(f"cannot open {path}: {os.strerror(errno.EACCES)}.")


def _require_ours(path: Path, connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] not in (APPLICATION_ID, 0):
        connection.close()
        raise _foreign(path)
    schema = schema_of(connection)
    if schema > SCHEMA:
        connection.close()
        raise AnnotationError(
            f"{path} was written by a newer version of napari-sparseseg (file format {schema}; this version reads "
            f"formats up to {SCHEMA}); update napari-sparseseg."
        )


def schema_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def is_blank(connection: sqlite3.Connection) -> bool:
    """Whether a file has no tables: the program was killed while it created the file."""
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older file to the current schema."""
    schema = schema_of(connection)
    for number, script in enumerate(MIGRATIONS[schema - 1 :], schema + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


# ---------------------------------------------------------------------- reading
def read_stored(path: Path) -> StoredAnnotations:
    """Everything in an annotation file.

    Raises
    ------
    AnnotationError
        Where it is not an annotation file, or is damaged; the message says how much could be rescued.
    """
    with closing(connect(path)) as connection:
        try:
            if is_blank(connection):
                raise BlankFileError(f"{path} is empty: the program was stopped while it created the file.")
            if schema_of(connection) < SCHEMA:
                with closing(connect(path, write=True)) as writer:
                    migrate(writer)
            return _stored(connection)
        except BlankFileError:
            raise
        except (sqlite3.Error, ValueError, TypeError, KeyError, OverflowError, RecursionError, SparseSegError) as error:
            strokes, chunks, lost = survey(connection)
            found = f"{len(strokes)} strokes and {len(chunks)} label chunks can still be read, {lost} cannot."
            raise unreadable(path, error, found) from error


def _stored(connection: sqlite3.Connection) -> StoredAnnotations:
    odd = connection.execute("SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index') LIMIT 1").fetchone()
    if odd is not None:  # a view or trigger could compute anything
        raise ValueError(f"it holds {odd[0]!r}, which no annotation file has")
    meta = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}
    height, width = meta["shape"]
    rows = connection.execute("SELECT id, name, colour FROM classes ORDER BY position")
    out = StoredAnnotations(
        (int(height), int(width)),
        make_classes([ClassDef(*row) for row in rows]),
        int(meta["version"]),
        str(meta["token"]),
        int(meta["next_id"]),
    )
    if meta.get("counts"):
        scribbles, dense = ({int(k): int(n) for k, n in layer} for layer in meta["counts"])
        area = out.shape[0] * out.shape[1]
        if not all(0 <= label <= 255 and 0 <= n <= area for layer in (scribbles, dense) for label, n in layer.items()):
            raise ValueError("it counts labels beyond 255, or more pixels than the slide has")
        out.counts = scribbles, dense
    others = meta.get("others") or []
    if not isinstance(others, list) or not all(isinstance(feature, dict) for feature in others):
        raise ValueError("its other objects cannot be read")
    out.others = others
    crc = 0
    for row in connection.execute("SELECT * FROM strokes ORDER BY id"):
        out.strokes.append(read_stroke(row))
        crc += row[-1]
    if not max((stroke.id for stroke in out.strokes), default=0) < out.next_id < _MAX_ID:
        raise ValueError(f"the next stroke would get the number {out.next_id}")
    for row in connection.execute("SELECT layer, level, i, j, data, crc FROM chunks"):
        layer, at, data = read_chunk(row)
        out.chunks[layer][at] = data
        crc += row[-1]
    found = out.tally = Tally(len(out.strokes), sum(map(len, out.chunks)), crc % (1 << 32))
    token, *numbers = meta.get("tally") or [None]
    expected = Tally(*numbers) if token == out.token else found
    if expected != found:
        raise ValueError(
            f"it has {found.strokes} of {expected.strokes} strokes and {found.chunks} of {expected.chunks} label "
            "chunks, or some of an earlier time; perhaps it was copied while a program wrote to it"
        )
    return out


def survey(connection: sqlite3.Connection) -> tuple[list[Stroke], list[tuple[int, tuple[int, Key], bytes]], int]:
    """Strokes and chunks that can be read from a damaged file, and the number of rows that cannot."""
    strokes: dict[int, Stroke] = {}
    chunks = {}
    lost = 0
    for row in _rows(connection, "strokes", "*"):
        try:
            stroke = read_stroke(row)
        except (ValueError, TypeError, OverflowError):
            lost += 1
        else:
            strokes[stroke.id] = stroke
    for row in _rows(connection, "chunks", "layer, level, i, j, data, crc"):
        try:
            layer, at, data = read_chunk(row)
            unpack(data)
        except (ValueError, TypeError, OverflowError):
            lost += 1
        else:
            chunks[layer, at] = data
    return [strokes[k] for k in sorted(strokes)], [(layer, at, data) for (layer, at), data in chunks.items()], lost


def _rows(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Rows from the first up to the damage, then from the last down to the damage."""
    for order in ("ASC", "DESC"):
        try:
            yield from connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid {order}")  # our own names
        except sqlite3.Error:
            continue
        else:
            return


# ---------------------------------------------------------------------- writing
def write_stored(path: Path, stored: StoredAnnotations, *, replaceable: Collection[str] | None = None) -> None:
    """Write a new file beside `path`, then rename it.

    Parameters
    ----------
    replaceable
        Only a file that holds one of these states is replaced; None: any.

    Raises
    ------
    FileInUseError
        Where another program writes to the file that is there.
    AnnotationError
        Where the folder cannot be written to, or the file may not be replaced.
    """
    require_unlocked(path)
    if replaceable is not None and path.exists() and path.stat().st_size and _token_in(path) not in replaceable:
        raise AnnotationError(f"{path} exists already; choose another name, or ask to overwrite it (overwrite=True).")

    def write(part: Path) -> None:
        with closing(connect(part, create=True)) as connection, atomic(connection):
            write_all(connection, stored)
        # A leftover log would be applied to the new file.
        for tail in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + tail).unlink(missing_ok=True)

    try:
        write_atomic(path, write)
    except (OSError, sqlite3.Error) as error:
        raise AnnotationError(f"cannot write {path}: {error}.") from error


def _token_in(path: Path) -> str | None:
    """The state that an annotation file holds; None where it is damaged, or another kind of file."""
    try:
        with closing(connect(path)) as connection:
            return str(json.loads(connection.execute("SELECT value FROM meta WHERE key = 'token'").fetchone()[0]))
    except (AnnotationError, sqlite3.Error, ValueError, TypeError, RecursionError):
        return None


def require_unlocked(path: Path) -> None:
    """Raise FileInUseError where another program writes to the file that is to be replaced."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0.5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            roll_back(connection)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise FileInUseError(
                f"{path} is open for writing in another program or window; close it there first."
            ) from error
    except sqlite3.DatabaseError:
        return  # not SQLite, or damaged: no program can be writing to it


def write_all(connection: sqlite3.Connection, stored: StoredAnnotations) -> None:
    """Write everything into an empty or outdated file, in the open transaction."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for table in ("meta", "classes", "strokes", "chunks"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in _CREATE.split(";"):
        connection.execute(statement)
    connection.executemany(_PUT_STROKE, map(stroke_row, stored.strokes))
    for layer, chunks in enumerate(stored.chunks):
        connection.executemany(_PUT_CHUNK, (chunk_row(layer, at, data) for at, data in chunks.items()))
    n_strokes, n_chunks, crc = connection.execute(_TALLY).fetchone()
    stored.tally = Tally(n_strokes, n_chunks, crc % (1 << 32))
    _write_head(connection, stored)
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def write_edit(connection: sqlite3.Connection, stored: StoredAnnotations, edit: Edit | None) -> None:
    """Write an edit, and the head of the annotations after it, in the open transaction."""
    if edit is not None:
        for layer, change in enumerate((edit.scribbles, edit.dense)):
            after = {at: pair[1] for at, pair in change.chunks.items()} if change else {}
            rows = (chunk_row(layer, at, data) for at, data in after.items() if data is not None)
            connection.executemany(_PUT_CHUNK, rows)
            gone = ((layer, level, *key) for (level, key), data in after.items() if data is None)
            connection.executemany(_DROP_CHUNK, gone)
        connection.executemany("DELETE FROM strokes WHERE id = ?", ((stroke.id,) for stroke in edit.removed))
        connection.executemany(_PUT_STROKE, map(stroke_row, edit.added))
    _write_head(connection, stored)


def _write_head(connection: sqlite3.Connection, stored: StoredAnnotations) -> None:
    connection.executemany(_PUT_META, meta_rows(stored))
    connection.execute("DELETE FROM classes")
    rows = ((n, c.id, c.name, c.colour) for n, c in enumerate(stored.classes))
    connection.executemany("INSERT INTO classes VALUES (?, ?, ?, ?)", rows)
