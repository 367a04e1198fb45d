"""What is in the dock of a result: which file, objects as a table, histograms, areas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QItemSelectionModel, QSize, Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDoubleSpinBox,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QTableView,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QWidget,
)

from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.results.histogram import HistogramTab
from napari_sparseseg.gui.results.model import CLASS, ID, REGION, ObjectModel, Wanted, heading
from napari_sparseseg.gui.sections.classes.table import percent, swatch
from napari_sparseseg.gui.widgets import ElidedLabel, NameBox, button, column, fix_rows, menu_button, note, row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qtpy.QtCore import QItemSelection, QModelIndex
    from qtpy.QtGui import QKeyEvent

    from napari_sparseseg.io.objects import ObjectTable
    from napari_sparseseg.session.measured import MeasuredResult

TYPED_MS = 300
"""A typed limit counts after no key was pressed for this long."""
SMALLEST_UM2 = 100.0
LIMIT_TIP = "A number; empty for no limit"
WRONG = "#d9534f"
_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d*)?")
PREFERRED = QSize(640, 300)
EMPTY = "Predict a slide, or open a result: its objects and areas are measured, without the model."


class ResultsPanel(QWidget):
    """The contents of the dock.

    Attributes
    ----------
    folder_requested, file_requested, measure_requested, cancel_requested
        Signals ().
    image_chosen
        Signal (int): which label image of the result.
    """

    folder_requested = Signal()
    file_requested = Signal()
    measure_requested = Signal()
    cancel_requested = Signal()
    image_chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.file = ElidedLabel(EMPTY)
        self.image = NameBox("Which label image of the result: what was predicted, or what was cleaned")
        self.image.activated.connect(self.image_chosen.emit)
        self.smallest = QDoubleSpinBox()
        self.smallest.setRange(0, 1e9)
        self.smallest.setDecimals(1)
        self.smallest.setValue(SMALLEST_UM2)
        self.smallest.setSuffix(" µm²")
        self.smallest.setToolTip("Smaller objects are left out; pixels of level 0 where the slide has no resolution")
        self.smallest.setAccessibleName("Smallest object")
        self.measure = button("Measure", "Measure again, with this smallest object", self.measure_requested.emit)
        self.open = menu_button(
            "Open result…", "Open a label image of a slide, predicted here or by another program",
            (("OME-Zarr (folder)…", self.folder_requested.emit), ("OME-TIFF (file)…", self.file_requested.emit)),
        )  # fmt: skip
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.progress.setFormat("Measuring, %p %")
        self.cancel = button("Cancel", "Stop measuring; what was shown before stays", self.cancel_requested.emit)
        self.said = note()
        self.objects, self.histogram, self.areas = ObjectsTab(), HistogramTab(), AreasTab()
        self.tabs = QTabWidget()
        for title, tab in (("Objects", self.objects), ("Histogram", self.histogram), ("Areas", self.areas)):
            self.tabs.addTab(tab, title)
        layout = column(self)
        layout.addLayout(
            row(self.file, self.image, QLabel("Smallest"), self.smallest, self.measure, self.open, stretch=0)
        )
        layout.addLayout(row(self.progress, self.cancel, stretch=0))
        layout.addWidget(self.said)
        layout.addWidget(self.tabs, 1)
        self.show_images((), 0)
        self.show_progress(None)
        self.say("")
        self.measure.setEnabled(False)
        self.tabs.setEnabled(False)

    def sizeHint(self) -> QSize:
        return QSize(PREFERRED.width(), min(PREFERRED.height(), self.screen().availableGeometry().height() * 3 // 10))

    def show_file(self, path: Path) -> None:
        """Say which result it is."""
        self.file.setText(str(path))
        self.measure.setEnabled(True)

    def show_images(self, names: Sequence[str], chosen: int) -> None:
        """Offer the label images of the result, where it has several."""
        self.image.clear()
        self.image.addItems(list(names))
        self.image.setCurrentIndex(chosen)
        self.image.setVisible(len(names) > 1)

    def show_progress(self, share: float | None) -> None:
        """How much is measured, 0..1; None when nothing is being measured."""
        for widget in (self.progress, self.cancel):
            widget.setVisible(share is not None)
        self.progress.setValue(round(1000 * (share or 0.0)))

    def say(self, text: str) -> None:
        """One line about what was done, or nothing."""
        self.said.setText(text)
        self.said.setVisible(bool(text))

    def show_measured(self, measured: MeasuredResult) -> None:
        """Fill all tabs."""
        self.tabs.setEnabled(True)
        self.objects.show_table(measured.objects)
        self.histogram.show_table(measured.objects)
        self.areas.show_areas(measured)


class ObjectView(QTableView):
    """A table that copies whole rows.

    Attributes
    ----------
    copy_requested
        Signal (): Ctrl+C.
    """

    copy_requested = Signal()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):  # Qt's own copies one cell
            self.copy_requested.emit()
        else:
            super().keyPressEvent(event)


class AreaView(QTableWidget):
    """A table that is copied as a whole; see `ObjectView`."""

    copy_requested = Signal()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            self.copy_requested.emit()
        else:
            super().keyPressEvent(event)


class ObjectsTab(QWidget):
    """A filter and the table of objects.

    Attributes
    ----------
    wanted_changed
        Signal (): see `wanted`.
    visited
        Signal (int): the user clicked an object or moved to it by keys; its row in the whole table.
    copy_requested, save_requested
        Signals ().
    """

    wanted_changed = Signal()
    visited = Signal(int)
    copy_requested = Signal()
    save_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.model = ObjectModel()
        self.model.sort_requested.connect(self._on_sort)
        self.kind = NameBox("Show the objects of one class")
        self.kind.setAccessibleName("Class")
        self.number = NameBox("Show the objects within these limits")
        self.number.setAccessibleName("Number to filter by")
        self.low, self.high = self._limit("from"), self._limit("to")
        self.count = QLabel()
        self.save = button(
            "Save table…", "Save the objects that are shown, as CSV or Parquet", lambda: self.save_requested.emit()
        )
        self.table = _object_view(self.model)
        self._sort, self._descending = ID, False
        self._typed = single_shot(self, TYPED_MS, self.wanted_changed.emit)
        self._arrived = single_shot(self, 0, self._visit)
        self._visited = -1
        self.kind.activated.connect(lambda _: self.wanted_changed.emit())
        self.number.activated.connect(lambda _: self.wanted_changed.emit())
        self.table.clicked.connect(self._on_clicked)
        self.table.selectionModel().currentRowChanged.connect(self._on_current)
        self.table.copy_requested.connect(self.copy_requested.emit)
        layout = column(self)
        layout.addLayout(row(self.kind, self.number, self.low, self.high, self.count, self.save, stretch=4))
        layout.addWidget(self.table, 1)

    def _limit(self, word: str) -> QLineEdit:
        made = QLineEdit()
        made.setPlaceholderText(word)
        made.setFixedWidth(70)
        made.setAccessibleName(f"Limit, {word}")
        made.setToolTip(LIMIT_TIP)
        made.textChanged.connect(lambda _: self._on_typed(made))
        return made

    def _on_typed(self, edit: QLineEdit) -> None:
        wrong = _is_wrong(edit.text())
        edit.setStyleSheet(f"border: 1px solid {WRONG};" if wrong else "")
        edit.setToolTip("This is no number, so there is no limit; write 0.5 or 1,500" if wrong else LIMIT_TIP)
        self._typed.start()

    @property
    def wanted(self) -> Wanted:
        """What to show; text that is no number is no limit."""
        return Wanted(
            self._sort, self._descending, self.kind.currentData(), self.number.currentData() or "area",
            _number(self.low.text()), _number(self.high.text()),
        )  # fmt: skip

    @property
    def selected(self) -> np.ndarray:
        """Rows of the whole table that are selected, intp (m,), from top to bottom."""
        found: QItemSelection = self.table.selectionModel().selection()
        parts = sorted((part.top(), part.bottom() + 1) for part in found)
        rows: np.ndarray = np.concatenate([self.model.rows[:0], *(self.model.rows[top:end] for top, end in parts)])
        return rows

    def show_table(self, table: ObjectTable) -> None:
        """Show all objects of another result."""
        self._sort, self._descending, self._visited = ID, False, -1
        self.model.show_table(table)
        self.kind.clear()
        self.kind.addItem("All classes", None)
        for c in table.classes:
            self.kind.addItem(swatch(c.colour), c.name, c.id)
        self.number.clear()
        for key in (key for key in self.model.columns if key not in (ID, CLASS, REGION)):
            self.number.addItem(heading(key, table.unit)[0], key)
        for edit in (self.low, self.high):
            edit.blockSignals(True)
            edit.clear()
            edit.blockSignals(False)
        header = self.table.horizontalHeader()
        header.blockSignals(True)
        header.setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        header.blockSignals(False)
        metrics = self.table.fontMetrics()
        for k, key in enumerate(self.model.columns):
            widest = 160 if key in (CLASS, REGION) else metrics.horizontalAdvance("1,234,567")
            title = metrics.horizontalAdvance(heading(key, table.unit)[0])
            self.table.setColumnWidth(k, min(200, max(title + 36, widest)))
        self._show_count()

    def show_rows(self, rows: np.ndarray) -> None:
        """Show other objects; the one that was visited stays selected where it is among them."""
        self.model.show_rows(rows)
        found = np.flatnonzero(rows == self._visited)
        if len(found):
            self.table.selectRow(int(found[0]))
        elif len(rows):
            self.table.scrollToTop()
        self._show_count()

    def _show_count(self) -> None:
        shown, of = len(self.model.rows), 0 if self.model.table is None else len(self.model.table)
        wrong = [edit.text() for edit in (self.low, self.high) if _is_wrong(edit.text())]
        text = f"{shown:,} objects" if shown == of else f"{shown:,} of {of:,} objects"
        self.count.setText(f"{wrong[0]} is no number" if wrong else text)

    def _on_sort(self, key: str, descending: bool) -> None:
        self._sort, self._descending = key, descending
        self.wanted_changed.emit()

    def _on_clicked(self, index: QModelIndex) -> None:
        self._visited = -1
        self._arrived.start()

    def _on_current(self, index: QModelIndex, before: QModelIndex) -> None:
        self._arrived.start()

    def _visit(self) -> None:
        """Once for a click, which also changes the current row."""
        index = self.table.currentIndex()
        if not index.isValid() or index.row() >= len(self.model.rows):
            return
        at = int(self.model.rows[index.row()])
        if at != self._visited:
            self._visited = at
            self.visited.emit(at)


def _number(text: str) -> float | None:
    """A number, with or without commas or spaces between thousands; None for any other text, such as ``0,5``."""
    plain = text.strip().replace("\u202f", ",").replace(" ", ",")
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    try:
        return float(plain)
    except ValueError:
        return None


def _is_wrong(text: str) -> bool:
    return bool(text.strip()) and _number(text) is None


def _object_view(model: ObjectModel) -> ObjectView:
    table = ObjectView()
    table.setModel(model)
    table.setAccessibleName("Objects")
    fix_rows(table)
    table.setShowGrid(False)
    table.setWordWrap(False)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
    header = table.horizontalHeader()
    header.setSortIndicator(0, Qt.SortOrder.AscendingOrder)
    header.setHighlightSections(False)
    table.setSortingEnabled(True)
    # it would ask whether each row of each column is selected, 6 s for 300,000 rows: it gets a selection of its own
    header.setSelectionModel(QItemSelectionModel(model, header))
    return table


AREA_HEADINGS = ("Region", "Class", "mm²", "Share", "Objects")


class AreasTab(QWidget):
    """Area of each class, in the slide and in each region.

    Attributes
    ----------
    copy_requested, save_requested
        Signals ().
    """

    copy_requested = Signal()
    save_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.region = QComboBox()
        self.region.setAccessibleName("Region")
        self.region.setToolTip("Show the areas of one region")
        self.region.activated.connect(lambda _: self._fill())
        self.copy = button("Copy", "Copy the whole table, to paste it into a spreadsheet", self.copy_requested.emit)
        self.save = button("Save areas…", "Save the whole table as CSV", self.save_requested.emit)
        self.table = AreaView(0, len(AREA_HEADINGS))
        self.table.setHorizontalHeaderLabels(AREA_HEADINGS)
        self.table.setAccessibleName("Areas by region and class")
        fix_rows(self.table)
        self.table.setShowGrid(False)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.horizontalHeader().setHighlightSections(False)
        self.table.copy_requested.connect(self.copy_requested.emit)
        self._measured: MeasuredResult | None = None
        layout = column(self)
        layout.addLayout(row(QLabel("Region"), self.region, self.copy, self.save, stretch=1))
        layout.addWidget(self.table, 1)

    def show_areas(self, measured: MeasuredResult) -> None:
        """Fill the table."""
        self._measured = measured
        self.region.clear()
        names = list(dict.fromkeys(r.region for r in measured.areas))
        if len(names) > 1:
            self.region.addItem("All regions", None)
        for name in names:
            self.region.addItem("Whole slide" if name == names[0] else name, name)
        self._fill()

    def _fill(self) -> None:
        if self._measured is None:
            return
        chosen, whole = self.region.currentData(), self._measured.areas[0].region if self._measured.areas else ""
        rows = [r for r in self._measured.areas if chosen in (None, r.region)]
        known = all(r.mm2 is not None for r in rows)
        colours = {c.id: c.colour for c in self._measured.objects.classes}
        self.table.setHorizontalHeaderLabels(["mm²" if h == "mm²" and known else "px" if h == "mm²" else h
                                              for h in AREA_HEADINGS])  # fmt: skip
        for c in range(len(AREA_HEADINGS)):
            side = Qt.AlignmentFlag.AlignLeft if c < 2 else Qt.AlignmentFlag.AlignRight
            self.table.horizontalHeaderItem(c).setTextAlignment(side | Qt.AlignmentFlag.AlignVCenter)  # type: ignore[union-attr,unused-ignore]
        self.table.setRowCount(len(rows))
        for k, r in enumerate(rows):
            size = f"{r.mm2:.4g}" if r.mm2 is not None else f"{r.pixels:,}"
            share = "" if r.percent is None else percent(r.percent / 100)
            objects = "" if r.objects is None else f"{r.objects:,}"
            cells = ("Whole slide" if r.region == whole else r.region, r.class_name, size, share, objects)
            for c, text in enumerate(cells):
                item = QTableWidgetItem(text)
                if c == 1 and r.class_id in colours:
                    item.setIcon(swatch(colours[r.class_id]))
                if c > 1:  # numbers
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(k, c, item)
