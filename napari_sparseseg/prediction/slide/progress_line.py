"""Progress of a whole-slide prediction in a terminal or a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from napari_sparseseg.prediction.slide.options import Progress

_LOG_S = 10.0


class ProgressLine:
    """Writes stage, share, rate and remaining time to stderr: one line that is written over in a terminal, else a line
    every ten seconds and at the end of each stage.

    Parameters
    ----------
    name
        What is predicted.
    stream
        Where to write; stderr by default, so that stdout holds the result alone.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name, self._stream = name, stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._written = -_LOG_S

    def __call__(self, progress: Progress) -> None:
        """Say how far the run is."""
        now = time.monotonic()
        last = progress.done >= progress.total
        if not self._terminal and not last and now - self._written < _LOG_S:
            return
        self._written = now
        text = f"{self._name}: {self._describe(progress)}"
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if last and progress.stage == "write" else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    @staticmethod
    def _describe(progress: Progress) -> str:
        share = progress.done / progress.total if progress.total else 1.0
        parts = [f"{progress.stage} {share:.0%}"]
        if progress.stage == "predict" and progress.megapixels_per_second:
            parts.append(f"{progress.megapixels_per_second:.2f} MP/s")
        if progress.seconds_left is not None and progress.done < progress.total:
            parts.append(f"{time_left(progress.seconds_left)} left")
        return ", ".join(parts)


def time_left(seconds: float) -> str:
    """A duration in the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
