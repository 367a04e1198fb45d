"""A run of the window tests where no window can be opened, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.helpers.data import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pytestqt") is None, reason="pytest-qt is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a display"),
]


def run(tmp_path, **environment):
    """One module of them, without a display and without a program that makes one."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "REQUIRE_GUI", "CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/gui/test_hostile_texts.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={**kept, "PATH": str(tmp_path), **environment},
    )  # fmt: skip


def test_without_a_display_they_are_skipped_and_the_run_ends(tmp_path):
    ended = run(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no display" in ended.stdout
    assert "passed" not in ended.stdout


def test_where_they_must_run_that_is_a_failure(tmp_path):
    ended = run(tmp_path, REQUIRE_GUI="1")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "GUI tests must run here, but no display" in ended.stdout


@pytest.mark.slow
def test_a_display_that_does_not_answer_counts_as_none(tmp_path):
    ended = run(tmp_path, DISPLAY=":4711")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Qt opens no window here" in ended.stdout
