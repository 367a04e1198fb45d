"""Bad slides in processes of their own: one clear line, exit code 2, bounded memory, no hang."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.helpers.bad_slides import GREY, REFUSED, sparse
from tests.helpers.slide_child import SlideChildren

MEMORY_MB = 500
PATIENCE_S = 30.0
"""The aim is 2 s, and 0.1 s is usual; a machine under load is no failure, a hang is."""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="children are forked")


@pytest.fixture(scope="module")
def children():
    children = SlideChildren()
    yield children
    children.close()


def bounded(ended):
    assert ended.megabytes < MEMORY_MB
    assert ended.seconds < PATIENCE_S
    return ended


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(children, tmp_path, kind, record_property):
    make, reason = REFUSED[kind]
    path = make(tmp_path)
    ended = bounded(children.run("info", path))
    record_property("seconds", ended.seconds)
    record_property("megabytes", ended.megabytes)
    assert ended.code == 2
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 500
    assert str(path) in lines[0]
    assert re.search(reason, lines[0])


@pytest.mark.parametrize("kind", GREY)
def test_a_tile_that_cannot_be_decoded_is_told(children, tmp_path, kind):
    make, reason = GREY[kind]
    ended = bounded(children.run("info", make(tmp_path), "--json"))
    assert ended.code == 0
    facts = json.loads(ended.out)
    if reason:
        assert facts["bad_tiles"] == 1
        assert any("1 tile cannot be decoded" in p and re.search(reason, p) for p in facts["problems"])
        assert ended.err.count("SlideWarning") == 1


def test_a_large_slide_without_a_single_tile_opens_at_once(children, tmp_path):
    """100,000 x 100,000 px, tables of 152,881 tiles in a file with a hole, one resolution only."""
    ended = bounded(children.run("info", sparse(100_000)(tmp_path), "--json"))
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert (facts["width"], facts["height"], facts["bad_tiles"]) == (100_000, 100_000, 0)
    assert any("level 0 is empty" in p for p in facts["problems"])
    assert [level["stored"] for level in facts["levels"]] == [True] + [False] * 7
