"""Progress of a whole-slide prediction in a terminal or a log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from napari_sparseseg.prediction.slide import Progress

_TERMINAL_S, _LOG_S = 0.1, 10.0


class ProgressLine:
    """Writes share, stage, speed and remaining time to stderr: one line that is updated in place in a terminal, else a
    line every ten seconds and one at the end of each slide.

    Parameters
    ----------
    name
        What is predicted.
    stream
        Where to write; None: stderr, so that stdout contains the result alone.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name, self._stream = name, stream or sys.stderr
        self._bar: tqdm[None] | None = None

    def __call__(self, progress: Progress) -> None:
        """Update the line."""
        if self._bar is None:
            terminal = self._stream.isatty()
            self._bar = tqdm(
                desc=self._name,
                total=1.0,
                file=self._stream,
                mininterval=_TERMINAL_S if terminal else _LOG_S,
                bar_format="{desc}: {percentage:.0f}%{postfix}" + ("" if terminal else "\n"),
            )
        self._bar.set_postfix_str(self._describe(progress), refresh=False)
        self._bar.update(progress.fraction - self._bar.n)
        if progress.fraction >= 1:
            self._bar.close()
            self._bar = None

    @staticmethod
    def _describe(progress: Progress) -> str:
        parts: list[str] = [progress.stage]
        if progress.megapixels_per_second:
            parts.append(f"{progress.megapixels_per_second:.2f} MP/s")
        if progress.seconds_left:
            parts.append(f"{tqdm.format_interval(progress.seconds_left)} left")
        return ", ".join(parts)
