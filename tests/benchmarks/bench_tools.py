"""From the wheel to the outline: snap brush and superpixels in a real window, on the skin slide of the package.

    xvfb-run -a -s "-screen 0 1500x1050x24" python -m tests.benchmarks.bench_tools   # 1 minute; needs a quiet machine

At each zoom and place: milliseconds from resting the pointer to the outline, from a notch of the wheel to the changed
outline, and of the longest turn of the event loop of each. With software OpenGL a turn contains the repaint of the
canvas; `outline` is what uploading the outline takes without it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.samples import skin_slide
from tests.benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES, ZOOMS, PATIENCE = 12, (0.3, 1.0, 3.0), 5.0


def _until(done: Callable[[], bool]) -> tuple[float, float]:
    """Milliseconds until something is so, and of the longest turn meanwhile."""
    from qtpy.QtWidgets import QApplication

    start, longest = time.perf_counter(), 0.0
    while not done() and time.perf_counter() - start < PATIENCE:
        turn = time.perf_counter()
        QApplication.processEvents()
        longest = max(longest, time.perf_counter() - turn)
    return 1e3 * (time.perf_counter() - start), 1e3 * longest


def main() -> None:
    import napari

    from tests.helpers.mouse import Mouse, look_at, pump
    from tests.helpers.panel import open_from_menu, open_slide

    viewer = napari.Viewer()
    viewer.window.resize(1480, 1020)
    panel = open_from_menu(viewer)
    open_slide(panel, skin_slide())
    mouse, layer = Mouse(viewer), panel.slides.binding.scribbles.layer
    height, width = panel.session.slide.shape
    lines = []
    for zoom in ZOOMS:
        look_at(viewer, 0.4 * height, 0.5 * width, zoom)
        for key, name in (("S", "snap brush"), ("U", "superpixels")):
            mouse.hover((mouse.size[0] / 2, mouse.size[1] / 2))
            mouse.key(key)
            rest, wheel, turns, outline = [], [], [], []
            for k in range(PLACES):
                point = (mouse.size[0] * (0.3 + 0.03 * k), mouse.size[1] * (0.35 + 0.02 * k))
                mouse.move(point)
                took, longest = _until(lambda: layer.preview.outlined is not None)
                rest.append(took)
                before = layer.preview.outlined
                started = time.perf_counter()
                mouse.wheel(point, 1 if k % 2 else -1)
                event = 1e3 * (time.perf_counter() - started)
                took, turn = _until(
                    lambda before=before: layer.preview.outlined is not None and layer.preview.outlined is not before
                )
                wheel.append(event + took)
                turns += [longest, turn, event]
                started = time.perf_counter()
                layer.preview.draw()
                outline.append(1e3 * (time.perf_counter() - started))
            mouse.key(key)
            figures = [f"{np.median(v):.0f} / {max(v):.0f}" for v in (rest, wheel, turns, outline)]
            lines.append([f"{zoom:g}", name, *figures])
            pump(0.1)
    header = ["zoom", "tool", "rest to outline", "wheel to outline", "longest turn", "outline"]
    common.report(
        "tools", "# Outline under the pointer, ms, median / worst\n\n" + common.markdown(header, lines), lines
    )
    panel.shut_down()
    viewer.close()


if __name__ == "__main__":
    main()
