"""The demo without a window: train on the sample slide's scribbles, predict it, and score it against the truth."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np


def has_display() -> bool:
    """Whether a window can be opened: napari is installed and, on Linux, a display server is named."""
    from importlib.util import find_spec

    if find_spec("napari") is None or find_spec("qtpy") is None:
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def run_headless(output: Path, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, predict and score; writes ``prediction.ome.tif``, ``overlay.png`` and ``scores.json`` into `output`.

    Returns
    -------
    dict
        What ``scores.json`` holds: Dice per class and their mean, steps, seconds, files.
    """
    import tifffile

    from napari_sparseseg.samples import sample_scribbles, sample_slide, sample_truth, score

    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with Session(()) as session:
        slide = session.open(sample_slide())
        session.import_annotations(sample_scribbles())
        names = [c.name for c in session.classes]
        say(f"sample slide {slide.shape[1]} x {slide.shape[0]} px, classes {', '.join(names)}; training {seconds:g} s")
        session.train(seconds=seconds, wait=True)
        target = output / "prediction.ome.tif"
        session.predict_slide(target, overwrite=True)
        labels = tifffile.imread(target, series=0, level=0)
        image, _ = slide.thumbnail(1024)
        write_overlay(output / "overlay.png", image, labels, session)
        scores = score(labels, sample_truth())
        status = session.status
        result = {
            "dice": scores, "mean_dice": sum(scores.values()) / len(scores), "steps": status.step,
            "training_seconds": round(status.seconds, 1), "total_seconds": round(time.monotonic() - started, 1),
            "device": status.device, "prediction": str(target), "overlay": str(output / "overlay.png"),
        }  # fmt: skip
    (output / "scores.json").write_text(json.dumps(result, indent=1))
    for name, value in scores.items():
        say(f"  Dice {value:.3f}  {name}")
    say(f"mean Dice {result['mean_dice']:.3f} after {result['training_seconds']} s; files in {output}")
    return result


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, session: Session) -> None:
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
