"""Memory of a long training on a real slide with ten strokes: what it holds and what is in use, each minute.

Both are taken at rest, between two steps. Caches fill for the first thousands of steps; from `FILLED` on it is flat.

    python -m tests.benchmarks.bench_memory --minutes 15
"""

from __future__ import annotations

import argparse
import gc
import time

import numpy as np
import psutil

from napari_sparseseg import Session
from tests.helpers.data import real_data
from tests.helpers.memory import held_mb, in_use_mb

FILLED = 3000
"""Steps after which every cache has what it can hold."""
LIMIT = 0.3
"""MB a minute."""


def begin(session: Session, minutes: float) -> None:
    """Draw and train."""
    slide, rng = session.open(real_data("CMU-1-Small-Region.svs")), np.random.default_rng(0)
    height, width = slide.shape
    for k in range(10):
        y, x = 150 + k * (height - 300) / 9, rng.uniform(100, width - 500)
        session.annotations.paint([(y, x), (y + rng.uniform(-60, 60), x + 400)], 12, 1 + k % 2)
    session.train(seconds=60 * minutes)


def sample(session: Session, process: psutil.Process) -> tuple[float, float]:
    """What is held and what is in use between two steps, MB."""
    session.hold(True)
    step = -1
    while session.status.step != step:
        step = session.status.step
        time.sleep(1.0)
    gc.collect()
    found = held_mb(process), in_use_mb()
    session.hold(False)
    return found


def main() -> None:
    """Train, sample every ten seconds, fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    options, process, began = parser.parse_args(), psutil.Process(), time.monotonic()
    rows: list[tuple[float, float, float]] = []
    with Session(["tumour", "stroma"]) as session:
        session.warm_up()
        begin(session, options.minutes)
        while session.status.state == "training":
            time.sleep(9.0)
            held, used = sample(session, process)
            minute, step = (time.monotonic() - began) / 60, session.status.step
            print(f"minute {minute:4.1f}, step {step:5d}: held {held:7.1f} MB, in use {used:7.1f} MB", flush=True)
            if step >= FILLED:
                rows.append((minute, held, used))
    if len(rows) < 30:
        raise SystemExit(f"only {len(rows)} samples after step {FILLED}: train for longer.")
    minutes, *values = np.array(rows).T
    for name, value in zip(("held", "in use"), values, strict=True):
        slope, start = np.polyfit(minutes, value, 1)
        spread = (value - slope * minutes - start).std()
        print(
            f"{name}: {slope:+.2f} MB a minute over {np.ptp(minutes):.1f} minutes, spread {spread:.1f} MB  (<= {LIMIT})"
        )


if __name__ == "__main__":
    main()
