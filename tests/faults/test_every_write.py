"""A disk that is full at any byte: what is refused says so, is in memory, and is on disk once there is room again."""

from __future__ import annotations

import os

import pytest

from tests.faults import report
from tests.faults.acts import SIDE, SLIDES, User
from tests.helpers.data import two_textures, write_slide

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.name == "nt", reason="children are forked, and their files limited by the system"),
]
STEP, MOST, FEW = 1500, 150_000, 25
ROOM = 1 << 40
SIZES = [
    pytest.param(size, marks=() if k % FEW == 0 else pytest.mark.slow) for k, size in enumerate(range(0, MOST, STEP))
]
FULL = [
    ("paint", 20, 1), ("mpp", 0.7), ("paint", 40, 2), ("role", "held-out"), ("polygon", 60, 1, True), ("erase", 20),
    ("classes", ["stripes", "dots", "more"]), ("history", "undo"), ("paint", 80, 1), ("configure", 96, 2e-3),
    ("export",), ("save", ""),
]  # fmt: skip
"""Done while there is no room."""


@pytest.fixture
def user(tmp_path):
    for k, name in enumerate(SLIDES):
        write_slide(tmp_path / name, two_textures(SIDE, k))
    (tmp_path / "work").mkdir()
    made = User(tmp_path / "work", tmp_path / "home")
    yield made
    made.kill()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("saved", [True, False], ids=["project", "unsaved"])
def test_no_file_grows_beyond(user, size, saved):
    row = report.row("disk full at any byte while drawing, setting and saving")
    row.rounds += 1
    user.do(("open", 0))
    for y in (10, 30):
        user.do(("paint", y, 1))
    if saved:
        user.do(("save", "p"))
    user.do(("full", size))
    for act in FULL:
        user.do(act)
        if user.refusal is not None:
            row.cut += 1
            assert len(user.refusal) < 1000
            assert "\n" not in user.refusal
    user.do(("full", ROOM))
    user.do(("paint", 88, 2))
    assert user.refusal is None
    before = user.state
    user.kill()
    user.start()
    row.promised += 1
    row.lost += user.state != before
    assert user.state == before
