"""The list of unsaved work: what sessions that were never saved as a project have left on disk."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_sparseseg.gui.widgets import SPACING, button, plain_tip, row
from napari_sparseseg.session.recovery import KEPT_DAYS, recovery_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.session.recovery import UnsavedWork

WIDTH, HEIGHT = 640, 320
COLUMNS = ("Last change", "Slides", "Strokes", "Size", "")
MOST_NAMES = 3


class UnsavedDialog(QDialog):
    """Lists unsaved work; what is chosen can be opened, or deleted when it is old enough.

    Attributes
    ----------
    open_requested, delete_requested
        Signal (UnsavedWork).
    """

    open_requested = Signal(object)
    delete_requested = Signal(object)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Unsaved work")
        self.about = QLabel("Looking…")
        self.about.setWordWrap(True)
        self.about.setTextFormat(Qt.TextFormat.PlainText)
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        for column in range(len(COLUMNS)):  # a long name is shortened, so that size and strokes stay in view
            fits = QHeaderView.ResizeMode.Stretch if column == 1 else QHeaderView.ResizeMode.ResizeToContents
            self.table.horizontalHeader().setSectionResizeMode(column, fits)
        self.table.setAccessibleName("Unsaved work")
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.table.cellDoubleClicked.connect(self._on_open)
        self.open_it = button("Open", "Continue with it; it stays there until you save it as a project", self._on_open)
        self.delete_it = button("Delete…", "", self._on_delete)
        close = button("Close", "Close this list", self.close)
        layout = QVBoxLayout(self)
        layout.setSpacing(SPACING)
        layout.addWidget(self.about)
        layout.addWidget(self.table, 1)
        layout.addLayout(row(self.open_it, self.delete_it, QWidget(), close, stretch=2))
        self.resize(WIDTH, HEIGHT)
        self._works: Sequence[UnsavedWork] = ()
        self._on_selected()

    def show_works(self, works: Sequence[UnsavedWork]) -> None:
        """Fill the table, newest first."""
        self._works = works
        self.about.setText(
            f"Every stroke that was not saved as a project is in {recovery_folder()}. Nothing is deleted by itself."
            if works
            else "There is no unsaved work: everything that was drawn is in projects."
        )
        self.table.setRowCount(len(works))
        for n, work in enumerate(works):
            for column, text in enumerate(_cells(work)):
                item = QTableWidgetItem(text)
                item.setToolTip(plain_tip(", ".join(work.slides) if column == 1 else str(work.path)))
                if column in (2, 3):
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(n, column, item)
        if works:
            self.table.selectRow(0)
        self._on_selected()

    def _chosen(self) -> UnsavedWork | None:
        n = self.table.currentRow()
        return self._works[n] if 0 <= n < len(self._works) and self.table.selectedItems() else None

    def _on_open(self) -> None:
        if self.open_it.isEnabled():
            self.open_requested.emit(self._chosen())

    def _on_delete(self) -> None:
        self.delete_requested.emit(self._chosen())

    def _on_selected(self) -> None:
        work = self._chosen()
        self.open_it.setEnabled(work is not None and not work.in_use)
        kept = "" if work is None else why_kept(work)
        self.delete_it.setEnabled(work is not None and not kept)
        self.delete_it.setToolTip(plain_tip(kept or "Delete these strokes for good"))


def why_kept(work: UnsavedWork) -> str:
    """Why unsaved work cannot be deleted now; empty where it can."""
    if work.in_use:
        return "A session that is open writes to it."
    if datetime.now() - work.when < timedelta(days=KEPT_DAYS):
        return f"It was changed less than {KEPT_DAYS} days ago; until then it is kept."
    return ""


def described(work: UnsavedWork) -> str:
    """Date, slides and strokes in one line."""
    when, slides, strokes, size, _ = _cells(work)
    return f"{when}, {slides}: {strokes} strokes, {size}"


def _cells(work: UnsavedWork) -> tuple[str, ...]:
    more = len(work.slides) - MOST_NAMES
    names = ", ".join(work.slides[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    state = "open now" if work.in_use else ""
    return f"{work.when:%d %b %Y, %H:%M}", names or "only a model", f"{work.strokes:,}", _size(work.size), state


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:,.0f} kB"
