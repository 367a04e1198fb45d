"""What the commands share: their parser, numbers as arguments, and where words go."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A command that does `run`, with what all of them have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout, messages on stderr")
    parser.set_defaults(run=run, silent=False)
    return parser


def positive(text: str) -> float:
    """Type of an argument: a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def not_negative(text: str) -> float:
    """Type of an argument: a number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or a positive number")
    return value


def positive_int(text: str) -> int:
    """Type of an argument: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def say(args: argparse.Namespace, text: str) -> None:
    """Print a message; on stderr if stdout is for JSON. Characters that the stream cannot encode are escaped."""
    if args.silent:
        return
    out = sys.stderr if args.json else sys.stdout
    encoding = out.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)
