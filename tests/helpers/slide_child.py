"""A process that has imported what opening slides needs and forks one child per command line.

Run as ``python -m tests.helpers.slide_child``. Each line of its input, a JSON list of arguments of
``napari-sparseseg``, is one child. The answer: exit code, output, seconds of wall time from the fork to the end (the
interpreter and the imports were paid before), and the largest resident memory of the child: what it touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.limits import end_now, obey_permissions

ROOT = Path(__file__).resolve().parents[2]
HANG = 60
"""Seconds after which a child ends itself: a hang, on any machine."""


class Ended(NamedTuple):
    """How a child ended."""

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float


def main() -> None:
    """Serve until the input ends."""
    import napari_sparseseg.cli
    import napari_sparseseg.cli.files
    import napari_sparseseg.slides.backends.image
    import napari_sparseseg.slides.backends.omezarr
    import napari_sparseseg.slides.backends.openslide
    import napari_sparseseg.slides.backends.tiff  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            start = time.perf_counter()
            child = os.fork()
            if child == 0:
                _work(json.loads(line), out.fileno(), err.fileno())
            _, status, used = os.wait4(child, 0)
            seconds = time.perf_counter() - start
            out.seek(0)
            err.seek(0)
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps(Ended(code, out.read(), err.read(), seconds, used.ru_maxrss / 1024)), flush=True)


def _work(arguments: list[str], out: int, err: int) -> None:
    import resource  # Windows has none, and finds this module too

    os.dup2(out, 1)
    os.dup2(err, 2)
    code = 70
    try:
        signal.alarm(HANG)
        obey_permissions()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _command_line(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        end_now(code)


def _command_line(arguments: list[str]) -> int:
    """The command line, in this process."""
    from napari_sparseseg.cli import main

    return main(arguments)


class SlideChildren:
    """The test's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.slide_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *arguments: object) -> Ended:
        """``napari-sparseseg`` with these arguments, in a child."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("no pipes")
        stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        stdin.flush()
        return Ended(*json.loads(stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


if __name__ == "__main__":
    main()
