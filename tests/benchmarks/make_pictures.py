"""Makes the README's pictures by driving the real window.

Run ``python -m tests.benchmarks.make_pictures`` under a display (``xvfb-run -a -s "-screen 0
1500x1050x24"``). Writes ``window.png``, the real sample slide after a minute of training, and ``learning.png``,
the synthetic one 0, 3, 10, 30 and 60 s after Train, with the mean Dice on screen against the truth under each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-bench-")) / "settings.yaml"))
os.environ.setdefault("NAPARI_SPARSESEG_HOME", tempfile.mkdtemp(prefix="sparseseg-bench-"))

import napari
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.tile_store import LABELS
from napari_sparseseg.samples import sample_scribbles, sample_slide, sample_truth, score
from tests.helpers.mouse import Mouse, pump
from tests.helpers.waiting import wait_until

COLOURS = 256
"""Of a saved picture of a window: half of the bytes, and no difference that an eye sees."""
TIMES = (0, 3, 10, 30, 60)
TRAINED_S = 60
SHOWN_AT = (2000, 900)
"""Where the brush is in `window`: (y, x) of the slide."""


def shown_dice(session) -> float | None:
    """Mean Dice of what the live layer shows of the whole slide; None where a part has no prediction yet."""
    live = session.live
    if live is None:
        return None
    h, w = live.frame.shape(live.slide.shape)
    labels = live.store.read(LABELS, 0, Box(0, 0, h, w))
    return float(np.mean(list(score(labels, sample_truth()).values()))) if labels.all() else None


def strip(frames: list[tuple[float, float | None, np.ndarray]], path: Path) -> None:
    """Frames side by side with time and Dice under each."""
    height, width, text = 300, 300, 44
    sheet = Image.new("RGB", (width * len(frames), height + text), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for k, (seconds, dice, pixels) in enumerate(frames):
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side, :3]).resize((width - 6, height))
        sheet.paste(square, (k * width + 3, 0))
        draw.text((k * width + 8, height + 4), f"{seconds:.0f} s after Train", "black", font)
        found = "not all predicted yet" if dice is None else f"mean Dice {dice:.2f}"
        draw.text((k * width + 8, height + 22), found, "black", font)
    sheet.save(path, optimize=True)


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """A picture of a window, RGB or RGBA uint8, as a PNG of moderate size."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def window(path: Path) -> None:
    """The real sample with its scribbles, opened and trained by the panel's buttons."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 980)
    _, panel = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    panel.slides.open_skin()
    wait_until(lambda: panel.slides.binding is not None and any(panel.session.annotations.counts().values()))
    pump(1)
    panel.train.train.click()
    wait_until(lambda: panel.session.status.model_version > 0)
    pump(TRAINED_S)
    wait_until(lambda: not panel.session.live.pending)
    mouse = Mouse(viewer)
    mouse.hover(mouse.canvas(*SHOWN_AT))
    pump(2)
    save_picture(viewer.window.screenshot(flash=False, canvas_only=False), path)
    panel.shut_down()
    viewer.close()
    pump(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--window-only", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    window(args.output / "window.png")
    if args.window_only:
        return
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 980)
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    session = widget.session
    session.open(sample_slide())
    pump(2)
    session.import_annotations(sample_scribbles())
    pump(4)  # torch is imported meanwhile, as it is while a user draws
    viewer.reset_view()
    frames = [(0.0, None, viewer.screenshot(flash=False))]
    started = time.perf_counter()
    session.train(balancing="instance")
    for due in TIMES[1:]:
        pump(max(0.0, due - (time.perf_counter() - started)))
        frames.append((time.perf_counter() - started, shown_dice(session), viewer.screenshot(flash=False)))
    strip(frames, args.output / "learning.png")
    for seconds, dice, _ in frames:
        print(f"{seconds:5.1f} s  mean Dice {dice if dice is None else round(dice, 3)}")
    session.stop(wait=False)
    pump(3)
    viewer.close()
    pump(1)


if __name__ == "__main__":
    main()
