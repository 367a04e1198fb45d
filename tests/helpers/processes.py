"""Scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.helpers.data import ROOT


def child(script, *args, seconds=250):
    """Run a script in a process of its own; its lines of output."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        capture_output=True, text=True, timeout=seconds, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
