"""Annotation files: durable at every commit, one writer, old files, damaged files."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from napari_sparseseg.annotations import Annotations, DamagedFileError, FileInUseError, rescue
from napari_sparseseg.annotations import sqlite_file as store_module
from napari_sparseseg.annotations.file_state import summary
from napari_sparseseg.errors import AnnotationError
from tests.helpers.classes import add_class, rename_class
from tests.helpers.limits import file_size_limited

SHAPE = (5000, 5501)
WHOLE = (0, 0, *SHAPE)
GOLDEN = Path(__file__).parent / "golden" / "annotations-schema-1.sql"


@pytest.fixture
def drawn():
    a = Annotations(SHAPE, [("tumour", "#e6194b"), ("stroma", "#3cb44b")])
    rng = np.random.default_rng(0)
    for k in range(16):
        a.paint(rng.uniform(0, 1500, (4, 2)) + rng.uniform(0, 3500), float(2 ** rng.uniform(2, 8)), 1 + k % 2)
    a.erase([(100, 100), (3000, 3000)], 40)
    a.fill_polygon([(100, 100), (90, 2000), (1500, 1800)], 2, holes=[[(300, 1500), (400, 1600), (500, 1500)]])
    a.fill_polygon([(2000, 100), (2000, 900), (2500, 900)], 1, dense=True)
    return a


def same(a, b):
    np.testing.assert_array_equal(a.read(WHOLE), b.read(WHOLE))
    np.testing.assert_array_equal(a.levels()[-1], b.levels()[-1])
    assert a.counts() == b.counts()
    assert (a.version, a.classes) == (b.version, b.classes)
    for p, q in zip((*a.strokes, *a.dense_regions), (*b.strokes, *b.dense_regions), strict=True):
        assert (p.id, p.kind, p.class_id, p.radius, p.box, p.rings) == (
            q.id,
            q.kind,
            q.class_id,
            q.radius,
            q.box,
            q.rings,
        )
        np.testing.assert_array_equal(p.points, q.points)


def test_save_and_load(drawn, tmp_path):
    assert not drawn.saved
    drawn.save(tmp_path / "a.sparseseg")
    assert drawn.saved
    again = Annotations.load(tmp_path / "a.sparseseg")
    same(drawn, again)
    assert again.saved
    again.paint([(10, 10)], 5, 1)
    assert not again.saved
    assert again.strokes[-1].id > max(s.id for s in drawn.strokes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.sparseseg"]


def test_every_step_is_in_the_file_when_it_returns(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    told = []
    drawn.saved_changed.connect(told.append)
    drawn.attach(path)
    assert (drawn.saved, drawn.path, told) == (True, path.resolve(), [True])
    same(drawn, Annotations.load(path))
    steps = [
        lambda: drawn.paint([(500, 500), (600, 900)], 30, 1),
        lambda: drawn.erase([(500, 500)], 60),
        drawn.undo,
        drawn.redo,
        drawn.undo,
        drawn.undo,
        lambda: drawn.fill_polygon([(0, 0), (0, 50), (50, 50)], 2, dense=True),
        lambda: drawn.remove_dense_region(drawn.dense_regions[0].id),
        lambda: drawn.set_classes(drawn.classes[1:]),
        drawn.undo,
        lambda: rename_class(drawn, 1, "carcinoma"),
        lambda: add_class(drawn, "third"),
    ]
    for step in steps:
        step()
        same(drawn, Annotations.load(path))
    drawn.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.sqlite"]
    same(drawn, Annotations.load(path))


def test_a_new_session_takes_over_what_a_file_holds(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    drawn.save(path)
    fresh = Annotations(SHAPE)
    fresh.attach(path)
    same(drawn, fresh)
    fresh.close()
    drawn.attach(path)
    drawn.close()
    other = Annotations(SHAPE)
    other.paint([(1, 1)], 5, 1)
    with pytest.raises(AnnotationError, match="holds other annotations"):
        other.attach(path)
    with pytest.raises(AnnotationError, match="slide of"):
        Annotations((10, 10)).attach(path)
    same(drawn, Annotations.load(path))


def test_a_second_writer_is_refused_but_can_read(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    drawn.attach(path)
    with pytest.raises(FileInUseError, match="another program or window"):
        Annotations(SHAPE).attach(path)
    with pytest.raises(FileInUseError):
        Annotations(SHAPE).save(path)
    same(drawn, Annotations.load(path))
    drawn.paint([(10, 10)], 5, 1)
    same(drawn, Annotations.load(path))
    drawn.close()
    second = Annotations(SHAPE)
    second.attach(path)
    second.close()


def test_kill_9_loses_at_most_the_stroke_under_the_pen(tmp_path):
    path = tmp_path / "a.sqlite"
    script = textwrap.dedent(
        """
        import sys
        from napari_sparseseg.annotations import Annotations
        a = Annotations((20_000, 20_000), ["a", "b"])
        a.attach(sys.argv[1])
        for k in range(100_000):
            a.paint([(100 + 7 * k % 19_000, 50), (300, 19_000 - 11 * k % 18_000)], 3 + k % 90, 1 + k % 2)
            print(a.version, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as child:
        for _ in range(12):
            child.stdout.readline()
        time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split() if line.isdigit()]
    reported = max(told, default=12)
    found = Annotations.load(path)
    assert reported <= found.version <= reported + 1
    expected = Annotations((20_000, 20_000), ["a", "b"])
    for k in range(found.version):
        expected.paint([(100 + 7 * k % 19_000, 50), (300, 19_000 - 11 * k % 18_000)], 3 + k % 90, 1 + k % 2)
    assert found.counts() == expected.counts()
    assert found.snapshot().scribbles.levels == expected.snapshot().scribbles.levels
    assert len(found.strokes) == found.version
    after = Annotations((20_000, 20_000))
    after.attach(path)
    after.paint([(5, 5)], 3, 1)
    after.close()


@pytest.mark.fault("disk full")
@pytest.mark.skipif(sys.platform == "win32", reason="file sizes cannot be limited on Windows")
def test_a_failed_write_is_reported_and_written_with_the_next_stroke(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    drawn.attach(path)
    told = []
    drawn.saved_changed.connect(told.append)
    noise = np.random.default_rng(0).random((1500, 1500)) < 0.5
    drawn.begin_stroke(1)
    drawn.paint_mask(0, 1000, 1000, noise)
    with file_size_limited(200_000), pytest.raises(AnnotationError, match="in memory"):
        drawn.commit_stroke()
    assert not drawn.saved
    np.testing.assert_array_equal(drawn.read((1000, 1000, 1500, 1500))[noise], 1)
    drawn.paint([(10, 10)], 5, 2)
    assert drawn.saved
    assert told == [False, True]
    same(drawn, Annotations.load(path))
    drawn.close()


def golden_file(path):
    with sqlite3.connect(path) as connection:
        connection.executescript(GOLDEN.read_text())
    connection.close()
    return path


def test_files_of_schema_1_open(tmp_path):
    a = Annotations.load(golden_file(tmp_path / "old.sqlite"))
    assert a.shape == (3000, 2000)
    assert [(c.id, c.name, c.colour) for c in a.classes] == [(1, "tumour", "#e6194b"), (3, "fat", "#ffff00")]
    assert [s.kind for s in a.strokes] == ["brush", "polygon"]
    labels = a.read((0, 0, 3000, 2000), scribbles_only=True)
    expected = np.zeros((3000, 2000), np.uint8)
    expected[100:140, 200:260] = 3
    assert (labels == 3).sum() == 2400
    np.testing.assert_array_equal(labels == 3, expected == 3)
    assert a.read((2000, 1000, 1, 1)) == 1
    assert a.dense_regions[0].box == (500, 500, 100, 100)
    assert a.counts()[3] == 2400 + 100 * 100


def test_older_files_are_migrated(tmp_path, monkeypatch):
    path = golden_file(tmp_path / "old.sqlite")
    monkeypatch.setattr(store_module, "SCHEMA", 2)
    script = "ALTER TABLE strokes ADD COLUMN note TEXT; ALTER TABLE strokes DROP COLUMN note"
    monkeypatch.setattr(store_module, "MIGRATIONS", (script,))
    assert len(Annotations.load(path).strokes) == 2
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_newer_and_foreign_files_are_refused(tmp_path):
    path = golden_file(tmp_path / "new.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(AnnotationError, match="newer version"):
        Annotations.load(path)
    (tmp_path / "text").write_text("hello")
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        connection.execute("PRAGMA application_id = 77")
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    for name in ("text", "foreign.sqlite"):
        with pytest.raises(AnnotationError, match="not an annotation file"):
            Annotations.load(tmp_path / name)
        with pytest.raises(AnnotationError, match="not an annotation file"):
            Annotations(SHAPE).attach(tmp_path / name)
    with pytest.raises(AnnotationError, match="cannot open"):
        Annotations.load(tmp_path / "absent")
    with pytest.raises(AnnotationError, match="cannot write"):
        Annotations(SHAPE).save(tmp_path / "no" / "folder" / "a.sqlite")


def damage(path, start, length):
    data = bytearray(path.read_bytes())
    data[start : start + length] = b"\x5a" * length
    path.write_bytes(data)


def test_damage_is_found_and_what_is_left_is_rescued(drawn, tmp_path):
    for share in (0.4, 0.8):
        path = tmp_path / f"{share}.sqlite"
        drawn.save(path)
        damage(path, int(path.stat().st_size * share), 6000)
        with pytest.raises(DamagedFileError, match=r"damaged: .* can still be read, .*rescue"):
            Annotations.load(path)
        saved, text = rescue(path, SHAPE)
        assert "were lost" in text
        different = (saved.read(WHOLE) != drawn.read(WHOLE)).mean()
        assert different < 0.02
        assert len(saved.strokes) >= len(drawn.strokes) // 2


def test_one_changed_byte_in_a_chunk_is_found_and_drawn_again(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    drawn.save(path)
    with sqlite3.connect(path) as connection:
        (row,) = (connection.execute("SELECT rowid FROM chunks WHERE level = 0 LIMIT 1").fetchone(),)
        connection.execute("UPDATE chunks SET data = x'5507' WHERE rowid = ?", row)
    connection.close()
    with pytest.raises(DamagedFileError, match="1 cannot"):
        Annotations.load(path)
    saved, _ = rescue(path)
    np.testing.assert_array_equal(saved.read(WHOLE), drawn.read(WHOLE))
    assert saved.counts() == drawn.counts()


@pytest.mark.fault("annotation file copied while it was written")
def test_rows_of_different_times_are_found(drawn, tmp_path):
    """A file whose every row is whole, but one row is missing or is that of an earlier time."""
    path = tmp_path / "a.sqlite"
    drawn.attach(path)
    drawn.paint([(700, 100), (700, 900)], 20, 2)
    drawn.undo()
    drawn.close()
    same(drawn, Annotations.load(path))
    changes = [
        "DELETE FROM strokes WHERE id = (SELECT max(id) FROM strokes)",
        "DELETE FROM chunks WHERE rowid = (SELECT min(rowid) FROM chunks)",
        "UPDATE chunks SET (data, crc) = (SELECT data, crc FROM chunks ORDER BY length(data) DESC LIMIT 1) "
        "WHERE rowid = (SELECT rowid FROM chunks ORDER BY length(data) LIMIT 1)",
    ]
    for number, change in enumerate(changes):
        copy = tmp_path / f"{number}.sqlite"
        copy.write_bytes(path.read_bytes())
        with sqlite3.connect(copy) as connection:
            connection.execute(change)
        connection.close()
        with pytest.raises(DamagedFileError, match=r"copied while a program wrote to it.*strokes and .* can still be"):
            Annotations.load(copy)
        assert len(rescue(copy)[0].strokes) >= len(drawn.strokes) - 1


@pytest.mark.fault("annotation file copied while it was written")
def test_a_log_that_was_restarted_while_it_was_copied_is_found(drawn, tmp_path):
    """A copy whose first blocks are of the log before SQLite started it again, the others of the log after."""
    path, copy = tmp_path / "a.sqlite", tmp_path / "copy.sqlite"
    log, its_log = (p.with_name(p.name + "-wal") for p in (path, copy))
    drawn.attach(path)
    before = after = log.read_bytes()
    for k in range(2000):  # SQLite starts its log again when it holds 1,000 pages
        drawn.paint([(700 + k, 100), (700 + k, 900)], 20, 1 + k % 2)
        before, after = after, log.read_bytes()
        if before[16:20] != after[16:20]:
            break
    assert before[16:20] != after[16:20]
    copy.write_bytes(path.read_bytes())
    its_log.write_bytes(after)
    assert summary(copy).complete
    assert summary(copy).strokes == len(drawn.strokes) + len(drawn.dense_regions)
    its_log.write_bytes(before[: 32 + 24 + 4096] + after[32 + 24 + 4096 :])
    assert not summary(copy).complete
    drawn.close()


def test_a_file_that_an_earlier_version_has_changed_opens(drawn, tmp_path):
    """It writes a new token, but knows nothing of the tally."""
    path = tmp_path / "a.sqlite"
    drawn.save(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM strokes WHERE id = (SELECT max(id) FROM strokes WHERE kind = 'brush')")
        connection.execute("UPDATE meta SET value = '\"other\"' WHERE key = 'token'")
    connection.close()
    assert len(Annotations.load(path).strokes) == len(drawn.strokes) - 1


def test_a_truncated_file_is_refused(drawn, tmp_path):
    path = tmp_path / "a.sqlite"
    drawn.save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(AnnotationError):
        Annotations.load(path)
    with pytest.raises(AnnotationError, match="nothing can be rescued"):
        rescue(path)
