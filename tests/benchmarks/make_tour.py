"""Makes the pictures of the README's tour by driving the real window with mouse and keys.

Run ``python -m tests.benchmarks.make_tour`` under a display (``xvfb-run -a -s "-screen 0 1280x800x24"``). From an empty
napari to a prediction of one's own strokes: ``tour-1-open.png``, ``tour-2-draw.png``, ``tour-3-train.png`` and
``tour-4-keep.png`` with the areas of the whole slide; prints what the panel said and how long each step took.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("NAPARI_CONFIG", str(Path(tempfile.mkdtemp(prefix="sparseseg-tour-")) / "settings.yaml"))
os.environ.setdefault("NAPARI_SPARSESEG_HOME", tempfile.mkdtemp(prefix="sparseseg-tour-"))

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtTest import QTest
from scipy import ndimage

from napari_sparseseg.samples import CLASS_NAMES, sample_slide, sample_truth, score
from tests.benchmarks.make_pictures import shown_dice
from tests.helpers.answers import answer_file
from tests.helpers.mouse import Mouse, line, main_window, pump

LEFT = Qt.MouseButton.LeftButton
WIDTH, HEIGHT = 1280, 800
STROKES = 3
"""Per class; a stroke is half a second of work."""


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


def places(count: int) -> dict[int, list[tuple[float, float]]]:
    """Where a hand would draw: spots (y, x) deep inside each class, from the truth of the sample."""
    import imagecodecs

    truth = imagecodecs.png_decode(sample_truth().read_bytes())
    found = {}
    for class_id in range(1, len(CLASS_NAMES) + 1):
        depth = ndimage.distance_transform_edt(np.pad(truth == class_id, 1))[1:-1, 1:-1]
        spots = []
        for _ in range(count):
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            spots.append((4.0 * y, 4.0 * x))
            depth[max(0, y - 120) : y + 120, max(0, x - 120) : x + 120] = 0
        found[class_id] = spots
    return found


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
        main_window(self.viewer).grab().save(str(self.output / f"tour-{name}.png"))
        said = self.panel.header.next_step.text() or self.panel.header.state.text()
        print(f"{time.monotonic() - self.started:6.1f} s  {name}: {said}")

    def click(self, button) -> None:
        QTest.mouseClick(button, LEFT)
        pump(0.1)

    def name_classes(self) -> None:
        """Double-click and type; Add for what is missing."""
        from qtpy.QtWidgets import QLineEdit

        table = self.panel.classes.table
        for row, name in enumerate(CLASS_NAMES):
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

    def draw(self, spots: list[tuple[float, float]], length: float = 90.0) -> None:
        for y, x in spots:
            start, end = self.mouse.canvas(y, x - length), self.mouse.canvas(y, x + length)
            self.mouse.drag(line(start, end, 12))
            idle(0.1)

    def draw_all(self, strokes: dict[int, list[tuple[float, float]]]) -> None:
        for class_id, spots in strokes.items():
            self.mouse.key(str(class_id))
            self.draw(spots)

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
    panel.slides.open(sample_slide())
    until(
        lambda: (
            panel.slides.binding is not None and not session.status.message and not panel.header.recovery.isVisible()
        ),
        30,
    )
    idle(1.0)
    tour.note("1-open")
    tour.name_classes()
    strokes = places(STROKES)
    tour.draw_all(strokes)
    idle(1.0)
    tour.note("2-draw")
    tour.click(panel.train.train)
    until(lambda: shown_dice(session) is not None, 300)
    print(f"mean Dice on screen with {STROKES} strokes per class: {shown_dice(session):.2f}")
    tour.note("3-train")
    before = session.annotations.version
    tour.draw_all({k: v[-1:] for k, v in places(STROKES + 1).items()})
    until(lambda: session.status.live_annotation_version >= before + 1, 120)
    idle(10.0)
    print(f"after one more each: {shown_dice(session) or 0.0:.2f}")
    tour.click(panel.train.stop)
    until(lambda: session.status.state == "idle", 60)
    tour.keep()
    labels, _ = session.predict((0, 0, *session.slide.shape))
    print("whole slide:", {k: round(v, 2) for k, v in score(labels, sample_truth()).items()})
    panel.shut_down()
    tour.viewer.close()


if __name__ == "__main__":
    main()
