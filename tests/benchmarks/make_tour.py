"""Makes the pictures of the README's tour by driving the real window with mouse and keys.

Run ``python -m tests.benchmarks.make_tour`` under a display (``xvfb-run -a -s "-screen 0 1280x800x24"``). From an empty
napari to a prediction of one's own strokes on the real sample slide: ``tour-1-open.png``, ``tour-2-draw.png``,
``tour-3-train.png`` and ``tour-4-keep.png`` with the areas of the whole slide; prints what the panel said and when.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-tour-")) / "settings.yaml"))
os.environ.setdefault("NAPARI_SPARSESEG_HOME", tempfile.mkdtemp(prefix="sparseseg-tour-"))

import napari
import numpy as np
from PIL import ImageQt
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtTest import QTest

from napari_sparseseg.samples import skin_slide
from sample_data.scribble_skin import CLASSES
from sample_data.scribble_skin import STROKES as DRAWN
from tests.benchmarks.make_pictures import save_picture
from tests.helpers.answers import answer_file
from tests.helpers.mouse import Mouse, line, main_window, pump

LEFT = Qt.MouseButton.LeftButton
WIDTH, HEIGHT = 1280, 800
STROKES = 2
"""Per class before training; the others are drawn as corrections."""
TRAINED_S = 30
"""After the first prediction, before the picture."""


def idle(seconds: float) -> None:
    """Sleep in the event loop."""
    loop = QEventLoop()
    QTimer.singleShot(round(1000 * seconds), loop.quit)
    loop.exec()


def until(condition, seconds: float) -> None:
    """Wait for the network; the processor is left to it."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds} s")
        idle(0.1)


class Tour:
    """One user, one window."""

    def __init__(self, output: Path) -> None:
        self.output, self.started = output, time.monotonic()
        self.viewer = napari.Viewer(show=True)
        self.viewer.window.resize(WIDTH, HEIGHT)
        self.panel = self.viewer.window.add_plugin_dock_widget("napari-sparseseg")[1]
        self.mouse = Mouse(self.viewer)
        idle(1.0)

    def note(self, name: str) -> None:
        """A picture, and what the panel says."""
        idle(0.5)
        shown = ImageQt.fromqpixmap(main_window(self.viewer).grab())
        save_picture(np.asarray(shown), self.output / f"tour-{name}.png")
        said = self.panel.header.next_step.text() or self.panel.header.state.text()
        print(f"{time.monotonic() - self.started:6.1f} s  {name}: {said}")

    def click(self, button) -> None:
        QTest.mouseClick(button, LEFT)
        pump(0.1)

    def name_classes(self) -> None:
        """Double-click and type; Add for what is missing."""
        from qtpy.QtWidgets import QLineEdit

        table = self.panel.classes.table
        for row, (name, _) in enumerate(CLASSES):
            if row >= table.rowCount():
                self.click(self.panel.classes.add)
            else:
                table.setFocus()
                table.edit_name(self.panel.session.classes[row].id)
            editor = [e for e in table.findChildren(QLineEdit) if e.isVisible()][-1]
            editor.selectAll()
            QTest.keyClicks(editor, name)
            QTest.keyClick(editor, Qt.Key.Key_Return)
            idle(0.2)  # the editor closes

    def draw(self, first: int, last: int | None) -> None:
        """Draw strokes `first` to `last` of each class."""
        for class_id, strokes in DRAWN.items():
            self.mouse.key(str(class_id))
            for corners in strokes[first:last]:
                points = [self.mouse.canvas(y, x) for y, x in corners]
                self.mouse.drag([p for pair in pairwise(points) for p in line(*pair, 12)])
                idle(0.1)

    def keep(self) -> None:
        """Predict the slide into a file, and show its areas."""
        with tempfile.TemporaryDirectory() as folder:
            answer_file(Path(folder) / "result")
            self.click(self.panel.predict.predict_slide)
            until(lambda: self.panel.predict.result.text().startswith("Saved"), 300)
            for section in self.panel.sections[:3]:
                self.click(section.heading)
            self.panel.predict.areas.place.setFocus()
            QTest.keyClick(self.panel.predict.areas.place, Qt.Key.Key_End)
            self.panel.predict.result.setText("Saved slide.ome.zarr")  # not the folder of this run
            until(lambda: not self.panel.session.live.pending, 120)
            idle(3.0)  # the last tiles are on their way to the screen
            self.note("4-keep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tour = Tour(args.output)
    panel, session = tour.panel, tour.panel.session
    panel.slides.open(skin_slide())
    until(
        lambda: (
            panel.slides.binding is not None and not session.status.message and not panel.header.recovery.isVisible()
        ),
        30,
    )
    idle(1.0)
    tour.note("1-open")
    tour.name_classes()
    tour.draw(0, STROKES)
    idle(1.0)
    tour.note("2-draw")
    tour.click(panel.train.train)
    until(lambda: session.status.model_version and not session.live.pending, 300)
    idle(TRAINED_S)
    tour.note("3-train")
    tour.draw(STROKES, None)
    drawn = session.annotations.version
    until(lambda: session.status.live_annotation_version >= drawn, 120)
    idle(TRAINED_S)
    tour.click(panel.train.stop)
    until(lambda: session.status.state == "idle", 60)
    tour.keep()
    panel.shut_down()
    tour.viewer.close()


if __name__ == "__main__":
    main()
