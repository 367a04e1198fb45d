"""Annotation files as a synchronising folder, a backup or a power cut leaves them: what is there opens, with a note."""

from __future__ import annotations

import shutil

import pytest

from napari_sparseseg import Annotations, Session
from napari_sparseseg.annotations.file_state import summary
from tests.helpers.data import two_textures, write_slide


@pytest.fixture
def drawn(tmp_path):
    a = Annotations((300, 400), ["a", "b"])
    a.attach(tmp_path / "a.sqlite")
    for k in range(5):
        a.paint([(10 + 9 * k, 10), (10 + 9 * k, 90)], 3, 1)
    yield a
    a.close()


def test_a_copy_without_its_log_is_told_from_a_whole_one(drawn, tmp_path):
    shutil.copy(drawn.path, tmp_path / "part.sqlite")
    assert not summary(tmp_path / "part.sqlite").complete
    for tail in ("", "-wal"):
        shutil.copy(f"{drawn.path}{tail}", tmp_path / f"both.sqlite{tail}")
    whole = summary(tmp_path / "both.sqlite")
    assert (whole.strokes, whole.version, whole.complete) == (5, 5, True)
    drawn.close()
    closed = summary(tmp_path / "a.sqlite")
    assert (closed.strokes, closed.version, closed.complete) == (5, 5, True)
    shutil.copy(tmp_path / "a.sqlite", tmp_path / "later.sqlite")
    assert summary(tmp_path / "later.sqlite").complete


@pytest.mark.fault("log of an earlier time beside an annotation file")
@pytest.mark.parametrize("age", [1, 4])
def test_a_log_that_a_synchronising_folder_left_behind(tmp_path, age):
    """The newer file comes first, the removal of its old log later: opened in between, nothing is written over it."""
    rows = iter(range(5, 240, 3))

    def draw(session, strokes):
        for y in (next(rows) for _ in range(strokes)):
            session.annotations.paint([(y, 10), (y, 200)], 1, 1)

    with Session(["a", "b"]) as session:
        session.open(write_slide(tmp_path / "a.tif", two_textures(256)))
        session.save(tmp_path / "p")
        draw(session, age)
        project, file = session.project, session.annotations.path
        log = file.with_name(f"{file.name}-wal")
        old = log.read_bytes()
    with Session.load(project) as session:
        draw(session, 5)
    log.write_bytes(old)
    with Session.load(project) as session:
        assert "was older than its annotation file, and was put aside" in session.status.message
        assert len(session.annotations.strokes) == age + 5
        draw(session, 1)
    with Session.load(project) as session:
        assert session.status.message == ""
        assert len(session.annotations.strokes) == age + 6
    assert log.with_name(f"{log.name}.old").read_bytes() == old
