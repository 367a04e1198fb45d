"""Annotation files as a synchronising folder, a backup or a power cut leaves them: what is there opens, with a note."""

from __future__ import annotations

import shutil

import pytest

from napari_sparseseg import Annotations
from napari_sparseseg.annotations.file_state import summary


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
