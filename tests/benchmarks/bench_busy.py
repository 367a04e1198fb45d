"""Training beside busy programs: ``python -m tests.benchmarks.bench_busy [--seconds S] [--per-core 0 1 2 4]``.

A busy program is a process that computes without a pause, as other people's programs do on an ordinary machine. Each
run trains in a process of its own and reports the fine steps of its budget, the wall time from the call to its end, the
time to the first answer, and CPU seconds; torch is imported before. The threads of torch are chosen by default, by
``OMP_NUM_THREADS=1``, or one for each core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.helpers.data import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY = "x = 1\nwhile True: x = (x * 3 + 1) % 1000003"
CHILD = """
import json, sys, time
from napari_sparseseg.learning.torch_runtime import import_torch, tune_process
tune_process()
from napari_sparseseg import Session
from napari_sparseseg.slides import ArraySlide
from tests.helpers.data import two_textures
with Session(["stripes", "dots"]) as session:
    session.add(ArraySlide(two_textures(768), mpp=1.0))
    for y in (100, 250, 400, 550):
        session.annotations.paint([(y, 60), (y + 20, 300)], 6, 1)
        session.annotations.paint([(y, 430), (y + 20, 700)], 6, 2)
    import_torch()
    import napari_sparseseg.learning.learner
    first, began = [], time.monotonic()
    def answered(status):
        if status.model_version and not first:
            first.append(time.monotonic() - began)
    session.status_changed.connect(answered)
    cpu = time.process_time()
    session.train(seconds=float(sys.argv[1]), wait=True, device="cpu")
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    print(json.dumps({"steps": session.status.step, "first": first[0], "wall": wall, "cpu": cpu}))
"""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never pause."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(seconds: float, threads: str) -> dict[str, float]:
    """One training; `threads` is the value of ``OMP_NUM_THREADS``, empty for the default."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(seconds)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=20 * seconds + 300,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--per-core", type=float, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    print(f"{cores} cores, budget {given.seconds:g} s, load before {os.getloadavg()[0]:.1f}")
    print("| busy programs | threads | steps | steps / CPU s | first answer | wall |\n|---|---|---|---|---|---|")
    for per_core in given.per_core:
        with busy(round(per_core * cores)):
            for name, threads in (("default", ""), ("1", "1"), (str(cores), str(cores))):
                r = run(given.seconds, threads)
                print(
                    f"| {round(per_core * cores)} | {name} | {r['steps']} | {r['steps'] / r['cpu']:.1f} | "
                    f"{r['first']:.1f} s | {r['wall']:.1f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
