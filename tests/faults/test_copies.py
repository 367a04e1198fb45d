"""A project folder that is copied while somebody draws, as backups and synchronised folders do: file after file."""

from __future__ import annotations

import itertools
import os
import random
import time

import pytest

from napari_sparseseg import Session
from tests.faults import report
from tests.faults.acts import SIDE, SLIDES, User
from tests.faults.jobs import told
from tests.helpers.data import two_textures, write_slide
from tests.helpers.waiting import wait_until

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="children are forked and killed by signals"),
]
PARTS = ("project.json", ".sqlite", ".sqlite-wal", ".sqlite-shm")
ORDERS = list(itertools.permutations(PARTS))
ROUNDS = range(2 * len(ORDERS))
BLOCK = 1 << 14


def copy_slowly(source, target, pause):
    """Block by block, as over a network, while the file changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file, target.open("wb") as out:
        while block := file.read(BLOCK):
            out.write(block)
            time.sleep(pause)


def strokes_told(folder):
    lines = told(folder)
    return int(lines[-1][0]) if lines else 0


@pytest.mark.parametrize("number", ROUNDS)
def test_a_copy_made_meanwhile(tmp_path, number):
    """It has every stroke that was on disk when copying began, or says that it is not whole; the original has all."""
    order = ORDERS[number % len(ORDERS)]
    rng = random.Random(number)
    row = report.row("project copied file by file while somebody draws")
    write_slide(tmp_path / SLIDES[0], two_textures(SIDE))
    (tmp_path / "work").mkdir()
    user = User(tmp_path / "work", tmp_path / "home")
    user.do(("open", 0))
    user.do(("save", "p"))
    user.begin(("draw", 1500))
    many = rng.randrange(1, 900)
    wait_until(lambda: strokes_told(tmp_path / "work") >= many)
    before = strokes_told(tmp_path / "work")
    copy = tmp_path / "copies" / "p.sparseseg"
    for part in order:
        for source in sorted(user.project.rglob(f"*{part}")):
            copy_slowly(source, copy / source.relative_to(user.project), rng.uniform(0, 0.01))
    row.rounds, row.promised = row.rounds + 1, row.promised + before
    with Session.load(copy) as session:
        found = len(session.annotations.strokes) if session.slides else 0
        row.lost += found < before and not session.status.message
        assert found >= before or session.status.message
    user.end()
    assert user.refusal is None
    user.kill()
    user.start()
    assert user.state["slides"][SLIDES[0]][2] == 1500
    user.close()
