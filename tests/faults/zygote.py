"""A process that has imported what the jobs need and forks one child per job: a round costs milliseconds then.

Run as ``python -m tests.faults.zygote [torch]``. Each line of its input, a JSON list [job, folder, seed, kill after,
lines told before], is one child; it is answered with how the child ended. Only the zygote kills, before it has waited:
the process id cannot be another's then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.jobs import JOBS, LABELS
from tests.helpers.limits import end_now

if TYPE_CHECKING:
    import random

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 120.0


def main() -> None:
    """Serve until the input ends."""
    if "torch" in sys.argv:
        from napari_sparseseg.session.training import Training

        Training.warm_up()

    for line in sys.stdin:
        job, folder, seed, kill_after, lines = json.loads(line)
        child = os.fork()
        if child == 0:
            _work(JOBS[job], Path(folder), seed)
        if kill_after is not None:
            _kill(child, Path(folder), kill_after, lines)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _kill(child: int, folder: Path, after: float, lines: int) -> None:
    end, told, error = time.monotonic() + PATIENCE, folder / LABELS, folder / "error.txt"
    while time.monotonic() < end and not error.exists():
        if told.exists() and (not lines or told.read_bytes().count(b"\n") >= lines):
            break
        time.sleep(0.002)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)


def _work(job: Any, folder: Path, seed: int) -> None:
    try:
        job(folder, seed)
    except BaseException:  # noqa: BLE001 - told to the test, whatever it is
        (folder / "error.txt").write_text(traceback.format_exc())
        end_now(1)
    end_now(0)


class Zygote:
    """The test's side."""

    def __init__(self, home: Path, *, torch: bool = False) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "NAPARI_SPARSESEG_HOME": str(home)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote", *(["torch"] if torch else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env,
        )  # fmt: skip

    def run(self, job: str, folder: Path, seed: int, kill_after: float | None = None, lines: int = 0) -> bool:
        """Run a job; with `kill_after` kill it that many seconds after it began, or told `lines`. Whether it was."""
        (folder / LABELS).unlink(missing_ok=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("no pipes")
        stdin.write(json.dumps([job, str(folder), seed, kill_after, lines]) + "\n")
        stdin.flush()
        ended = int(stdout.readline())
        error = folder / "error.txt"
        if ended not in (0, -signal.SIGKILL) or error.exists():
            raise AssertionError(f"{job} ended with {ended}:\n{error.read_text() if error.exists() else ''}")
        return ended != 0

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def moment(rng: random.Random, longest: float) -> float:
    """When to kill: up to `longest` seconds after the beginning, early moments more often than late ones."""
    return longest * rng.random() ** 2


if __name__ == "__main__":
    main()
