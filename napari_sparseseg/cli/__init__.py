"""The ``napari-sparseseg`` command: the same `Session` calls as the panel, without a window.

Exit codes: 0 done; 2 a mistake of the user, explained in one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from napari_sparseseg import __version__
from napari_sparseseg.cli.clean import add_clean
from napari_sparseseg.cli.common import command, positive, say, write
from napari_sparseseg.cli.files import add_file_commands
from napari_sparseseg.cli.predict import add_predict
from napari_sparseseg.cli.results import add_result_commands
from napari_sparseseg.cli.runs import add_runs
from napari_sparseseg.cli.train import add_train
from napari_sparseseg.errors import AnnotationWarning, SparseSegError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from napari_sparseseg.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _showing(warnings.showwarning)
            result = args.run(args)
    except SparseSegError as error:
        return _fail(args, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result, indent=1, default=str))
    return 0


def _showing(usual: Callable[..., None]) -> Callable[..., None]:
    """Shows what was left out of an annotation file in one line; other warnings as usual."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, AnnotationWarning):
            write(f"napari-sparseseg: {message}", sys.stderr)
        else:
            usual(message, category, filename, lineno, file, line)

    return show


def _fail(args: argparse.Namespace, text: str) -> int:
    line = " ".join(text.split())
    if args.json:
        print(json.dumps({"error": line}))
    write(f"napari-sparseseg: {line}", sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="napari-sparseseg",
        description="Train a segmentation network on scribbled whole slides with a balanced loss, and predict slides.",
        epilog="Exit codes: 0 done; 2 a mistake that you can fix, explained in one line on stderr; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = command(commands, "demo", _demo, "train live on a sample slide, in napari or, without a display, headless")
    demo.add_argument("--headless", action="store_true", help="open no window, even if there is a display")
    demo.add_argument(
        "--output", type=Path, default=Path("sparseseg-demo"), metavar="DIR",
        help="folder for the results; default: %(default)s",
    )  # fmt: skip
    demo.add_argument("--seconds", type=positive, default=45.0, help="training time; default: %(default)s")

    add_train(commands)
    add_predict(commands)
    add_clean(commands)
    add_result_commands(commands)
    add_file_commands(commands)
    add_runs(commands)
    return parser


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    if args.headless or not _has_display():
        return _run_headless(args)
    from napari_sparseseg.gui.demo import run_window

    run_window()
    return {}


def _has_display() -> bool:
    """Whether napari is installed and, on Linux, a display server is set."""
    from importlib.util import find_spec

    if find_spec("napari") is None or find_spec("qtpy") is None:
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _run_headless(args: argparse.Namespace) -> dict[str, Any]:
    """Train, predict and score; writes ``prediction.ome.tif``, ``overlay.png`` and ``scores.json``."""
    import tifffile

    from napari_sparseseg import Session
    from napari_sparseseg.samples import sample_scribbles, sample_slide, sample_truth, score

    output, seconds = args.output, args.seconds
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with Session(()) as session:
        slide = session.open(sample_slide())
        session.import_annotations(sample_scribbles())
        names = ", ".join(c.name for c in session.classes)
        say(args, f"sample slide {slide.shape[1]} x {slide.shape[0]} px, classes {names}; training {seconds:g} s")
        session.train(seconds=seconds, wait=True)
        target = output / "prediction.ome.tif"
        session.predict_slide(target, overwrite=True)
        labels = tifffile.imread(target, series=0, level=0)
        image, _ = slide.thumbnail(1024)
        _write_overlay(output / "overlay.png", image, labels, session)
        scores = score(labels, sample_truth())
        status = session.status
        result = {
            "dice": scores, "mean_dice": sum(scores.values()) / len(scores), "steps": status.step,
            "training_seconds": round(status.seconds, 1), "total_seconds": round(time.monotonic() - started, 1),
            "device": status.device, "prediction": str(target), "overlay": str(output / "overlay.png"),
        }  # fmt: skip
    (output / "scores.json").write_text(json.dumps(result, indent=1))
    for name, value in scores.items():
        say(args, f"  Dice {value:.3f}  {name}")
    say(args, f"mean Dice {result['mean_dice']:.3f} after {result['training_seconds']} s; files in {output}")
    return result


def _write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, session: Session) -> None:
    """Slide and class colours side by side, as a PNG.

    Parameters
    ----------
    image
        uint8 (h, w, 3), the slide.
    labels
        uint8 class ids over the same area, any size.
    """
    import imagecodecs
    import numpy as np

    h, w = image.shape[:2]
    rows = np.minimum(np.arange(h) * labels.shape[0] // h, labels.shape[0] - 1)
    columns = np.minimum(np.arange(w) * labels.shape[1] // w, labels.shape[1] - 1)
    table = np.zeros((256, 3), np.float32)
    for c in session.classes:
        table[c.id] = c.rgb
    ids = labels[np.ix_(rows, columns)]
    mixed = np.where(ids[..., None] > 0, 0.5 * image[..., :3] + 0.5 * table[ids], image[..., :3])
    both = np.concatenate([image[..., :3], mixed.astype(np.uint8)], axis=1)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(both)))
