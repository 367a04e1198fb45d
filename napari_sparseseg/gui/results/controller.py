"""Results: opens the dock, measures off the GUI thread, and connects the table with the view."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QDockWidget

from napari_sparseseg.errors import PredictionStopped
from napari_sparseseg.files import result_name
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.results.histogram import histogram
from napari_sparseseg.gui.results.mark import ObjectMark
from napari_sparseseg.gui.results.model import find_rows
from napari_sparseseg.gui.results.view import ResultsPanel
from napari_sparseseg.gui.widgets import panel_sheet

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.results.histogram import Histogram
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.view.controller import ViewActions
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.session.measured import MeasuredResult
    from napari_sparseseg.slides import Slide

DOCK = "Results"
SMALL, LARGE = 0.05, 0.6
"""An object that takes less or more of the view than this is shown larger or smaller."""
GOOD = 0.25
LARGEST_ZOOM = 4.0
NOT_OPEN = "The slide of this result is not open: open it to go to its objects."
TABLES = "Table (*.csv);;Parquet (*.parquet)"


class _Run:
    """One measurement, and how it is told to stop and says how far it is, on its own thread."""

    def __init__(self, progressed: Callable[[float], object]) -> None:
        self.stop = threading.Event()
        self._progressed = progressed

    def report(self, share: float) -> None:
        """Raise `PredictionStopped` once it is stopped."""
        if self.stop.is_set():
            raise PredictionStopped("measuring was stopped.")
        self._progressed(share)


class ResultActions(QObject):
    """Connects the dock, the session's results and the view.

    Parameters
    ----------
    context
        Session and viewer.
    slides
        Which slide is active.
    view
        Goes to a point of the slide.
    last
        The label image that was predicted last of a slide, if any.
    """

    _progressed = Signal(object, float)

    def __init__(
        self, context: Context, slides: SlideActions, view: ViewActions, last: Callable[[Slide], Path | None]
    ) -> None:
        super().__init__(context)
        self._context, self._slides, self._view, self._last = context, slides, view, last
        self.panel = panel = ResultsPanel()
        self.measured: MeasuredResult | None = None
        self._path: Path | None = None
        self._images: tuple[Path, ...] = ()
        self._run: _Run | None = None
        self._asked = 0
        self._histogram_asked = 0
        self._arriving: tuple[Slide, Component] | None = None
        self._mark = ObjectMark(context)
        self._progressed.connect(self._on_progress)
        panel.folder_requested.connect(self._on_folder)
        panel.file_requested.connect(self._on_file)
        panel.measure_requested.connect(self._measure)
        panel.cancel_requested.connect(self._on_cancel)
        panel.image_chosen.connect(lambda k: self._open_image(self._images[k]))
        panel.objects.wanted_changed.connect(self._on_wanted)
        panel.objects.visited.connect(self._on_visited)
        panel.objects.copy_requested.connect(self._on_copy)
        panel.objects.save_requested.connect(self._on_save)
        panel.histogram.chosen.connect(self._on_histogram)
        panel.areas.copy_requested.connect(self._on_copy_areas)
        panel.areas.save_requested.connect(self._on_save_areas)
        slides.binding_changed.connect(self._on_binding)

    def show(self) -> None:
        """Open the dock; measure what was predicted last of the active slide, if that is not there yet."""
        self._dock()
        entry = self._context.entry
        predicted = None if entry is None else self._last(entry.slide)
        if predicted is not None and (self.measured is None or self.measured.path not in self._of(predicted)):
            self.open(predicted)

    def open(self, path: Path) -> None:
        """Open the dock and measure a label image, in the background."""
        self._dock()
        session = self._context.session
        self._context.in_background(
            lambda: session.results.images(path), lambda images: self._on_images(path, images), name="Opening a result"
        )

    def paint(self, palette: Palette) -> None:
        """Apply the colours of a theme."""
        room = "ObjectView QHeaderView::section { padding-right: 18px; }"  # for the arrow of the sorted column
        self.panel.setStyleSheet(panel_sheet(palette) + room)
        self.panel.histogram.paint(palette)

    def close(self) -> None:
        """Stop measuring, and take dock and mark out of the window."""
        self._on_cancel()
        self._mark.close()
        window = self._context.viewer.window
        if not self._context.leaving and DOCK in window.dock_widgets:
            window.remove_dock_widget(self.panel)
        self.panel.hide()

    def _dock(self) -> None:
        window = self._context.viewer.window
        if DOCK not in window.dock_widgets:
            window.add_dock_widget(self.panel, name=DOCK, area="bottom", add_vertical_stretch=False)
        dock = self.panel.parentWidget()
        if isinstance(dock, QDockWidget):
            dock.show()
            dock.raise_()
        self.panel.show()

    # Measuring

    @staticmethod
    def _of(path: Path) -> tuple[Path, ...]:
        return (path, *((path / "labels" / name) for name in ("classes", "cleaned")))

    def _on_folder(self) -> None:
        path = dialogs.ask_folder(self.panel, "Open a result (a folder NAME.ome.zarr)")
        if path:
            self.open(Path(path))

    def _on_file(self) -> None:
        path = dialogs.ask_open(self.panel, "Open a result", "OME-TIFF (*.ome.tif *.ome.tiff *.tif *.tiff)")
        if path:
            self.open(Path(path))

    def _on_images(self, path: Path, images: tuple[Path, ...]) -> None:
        self._images = images
        chosen = next((k for k, image in enumerate(images) if image == path), 0)
        self.panel.show_images([image.name for image in images], chosen)
        self._open_image(images[chosen])

    def _open_image(self, path: Path) -> None:
        self._path = path
        self.panel.show_file(path)
        self._measure()

    def _measure(self) -> None:
        path, session, smallest = self._path, self._context.session, self.panel.smallest.value()
        if path is None:
            return
        self._on_cancel()
        run = self._run = _Run(lambda share: self._progressed.emit(run, share))
        self.panel.say("")
        self.panel.show_progress(0.0)
        self._context.jobs.run(
            lambda: session.results.measure(path, min_area_um2=smallest, progress=run.report),
            lambda measured: self._on_measured(run, measured),
            name=f"Measuring {path.name}",
            always=lambda: self._on_ended(run),
        )

    def _on_progress(self, run: _Run, share: float) -> None:
        if run is self._run:
            self.panel.show_progress(share)

    def _on_cancel(self) -> None:
        if self._run is not None:
            self._run.stop.set()

    def _on_ended(self, run: _Run) -> None:
        if run is self._run:
            self.panel.show_progress(None)
            self.panel.say("Stopped." if run.stop.is_set() else "")

    def _on_measured(self, run: _Run, measured: MeasuredResult) -> None:
        if run is not self._run or run.stop.is_set() or self._context.closed:
            return
        self._run = None
        self.measured = measured
        self._mark.clear()
        self.panel.show_measured(measured)
        self._on_histogram()

    # Table and histogram

    def _on_wanted(self) -> None:
        measured, wanted = self.measured, self.panel.objects.wanted
        if measured is None:
            return
        self._asked += 1
        asked = self._asked
        self._context.jobs.run(
            lambda: find_rows(measured.objects, wanted), lambda rows: self._on_rows(measured, asked, rows)
        )

    def _on_rows(self, measured: MeasuredResult, asked: int, rows: np.ndarray) -> None:
        if measured is self.measured and asked == self._asked:
            self.panel.objects.show_rows(rows)
            self._on_histogram()

    def _on_histogram(self) -> None:
        measured, tab, rows = self.measured, self.panel.histogram, self.panel.objects.model.rows
        column, logarithmic = tab.column, tab.logarithmic.isChecked()
        if measured is None or not column:
            return
        self._histogram_asked += 1
        asked = self._histogram_asked

        def show(made: Histogram) -> None:
            if measured is self.measured and asked == self._histogram_asked:
                tab.show_histogram(made, len(rows))

        self._context.jobs.run(lambda: histogram(measured.objects, rows, column, logarithmic=logarithmic), show)

    def _on_copy(self) -> None:
        measured, rows = self.measured, self.panel.objects.selected
        if measured is None or not len(rows):
            return
        self._context.in_background(
            lambda: measured.objects.taken(rows).tab_separated(),
            lambda text: self._copied(text, f"{len(rows):,} objects"),
            name="Copying objects",
        )

    def _on_copy_areas(self) -> None:
        if self.measured is not None:
            self._copied(self.measured.areas_text(), "The areas")

    def _copied(self, text: str, what: str) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
            self.panel.say(f"{what} copied.")

    def _on_save(self) -> None:
        measured, rows = self.measured, self.panel.objects.model.rows
        if measured is not None:
            path = dialogs.ask_save(self.panel, "Save objects", self._beside(measured, "-objects.csv"), TABLES)
            self._save(path, lambda: measured.save_objects(Path(path), rows))

    def _on_save_areas(self) -> None:
        measured = self.measured
        if measured is not None:
            path = dialogs.ask_save(self.panel, "Save areas", self._beside(measured, "-areas.csv"), "Table (*.csv)")
            self._save(path, lambda: measured.save_areas(Path(path)))

    def _save(self, path: str, work: Callable[[], object]) -> None:
        if path:
            self._context.in_background(work, lambda _: self.panel.say(f"Saved {path}"), name="Saving a table")

    @staticmethod
    def _beside(measured: MeasuredResult, ending: str) -> str:
        path = measured.path
        whole = next((p for p in (path, *path.parents) if p.suffix == ".zarr"), path)
        return str(whole.with_name(result_name(whole) + ending))

    # The view

    def _on_visited(self, row: int) -> None:
        measured, session, entry = self.measured, self._context.session, self._context.entry
        if measured is None:
            return

        def look() -> tuple[Slide | None, Component]:
            with session.results.slide_of(measured.path, None) as slide:
                found = slide
            if found is None and measured.slide is None and entry is not None:
                found = entry.slide  # labels of another program do not say of which slide
            return found, measured.outline(row)

        self._context.jobs.run(look, lambda found: self._go(*found))

    def _go(self, slide: Slide | None, outline: Component) -> None:
        if slide is None:
            self.panel.say(NOT_OPEN)
            return
        if self.panel.said.text() == NOT_OPEN:
            self.panel.say("")
        self._arriving = slide, outline
        binding = self._slides.binding
        if binding is not None and binding.entry.slide is slide:
            self._arrive()
        else:
            self._context.attempt(lambda: self._context.session.activate(slide))

    def _on_binding(self) -> None:
        self._mark.clear()
        self._arrive()

    def _arrive(self) -> None:
        binding, arriving = self._slides.binding, self._arriving
        if binding is None or arriving is None or binding.entry.slide is not arriving[0]:
            return
        self._arriving = None
        outline = arriving[1]
        corners = outline.rings[0]
        (top, left), (bottom, right) = corners.min(axis=0), corners.max(axis=0)
        self._view.look_at((top, left, bottom - top, right - left), (SMALL, GOOD, LARGE), LARGEST_ZOOM)
        self._mark.show(binding, outline.rings)
