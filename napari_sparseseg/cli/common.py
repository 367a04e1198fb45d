"""What the commands share: their parser, numbers as arguments, output and progress."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from pathlib import Path

    from napari_sparseseg.prediction.slide import Progress
    from napari_sparseseg.session import Session
    from napari_sparseseg.session.project import Role
    from napari_sparseseg.slides import Slide

_TERMINAL_S, _LOG_S = 0.1, 10.0
"""Seconds between two updates of a progress line."""


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A command that calls `run`, with the options that all commands have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, silent=False)
    return parser


def positive(text: str) -> float:
    """Type of an argument: a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return float(text)


def not_negative(text: str) -> float:
    """Type of an argument: a number of at least 0."""
    return float(text) if float(text) == 0 else positive(text)


def positive_int(text: str) -> int:
    """Type of an argument: a whole number above 0."""
    positive(text)
    return int(text)


def plain(text: str) -> str:
    """Text as one line without control characters, escape sequences and invisible marks of direction.

    File names, class names and metadata come from anywhere; printed raw, they could rewrite what a terminal shows.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def write(text: str, stream: TextIO | None = None) -> None:
    """Print a line, as `plain`, to stdout or `stream`; what that cannot encode is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(plain(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def image_number(text: str) -> int:
    """Type of an argument: the number of an image in a file, from 0."""
    not_negative(text)
    return int(text)


def add_slide_options(parser: argparse.ArgumentParser) -> None:
    """Describe how the slides are to be opened; see `open_slide_of`."""
    add_image(parser)
    parser.add_argument(
        "--mpp-of-slide", type=positive, metavar="UM", help="um per pixel of the slides; default: what their files say"
    )


def add_image(parser: argparse.ArgumentParser) -> None:
    """Describe the option that chooses an image."""
    parser.add_argument(
        "--image",
        type=image_number,
        metavar="N",
        help="number of the image, in a file with several; default: largest",
    )


def open_slide_of(session: Session, path: Path, args: argparse.Namespace, role: Role) -> Slide:
    """Open a slide in a session as the options of `add_slide_options` say."""
    slide = session.open(path, role=role, image=args.image)
    if args.mpp_of_slide is not None:
        session.set_mpp(args.mpp_of_slide, slide)
    return slide


def say(args: argparse.Namespace, text: str) -> None:
    """Print a line for people, to stderr where stdout is for JSON."""
    if not args.silent:
        write(text, sys.stderr if args.json else sys.stdout)


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
                desc=plain(self._name),
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
