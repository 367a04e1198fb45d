"""The table of predicted areas: of the view, of a drawn region, or of the whole slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_sparseseg.gui.sections.classes.table import MOST_ROWS, percent, swatch
from napari_sparseseg.gui.sections.predict.areas import areas_csv
from napari_sparseseg.gui.widgets import button, column, fit_rows, fix_rows, note, row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.gui.sections.predict.areas import Area

HEADINGS = ("Class", "mm²", "Share")
PLACES = (
    ("On screen", "Areas of what is on screen appear here with the first prediction."),
    (
        "Drawn region",
        "Select a dense region, or a rectangle or polygon of a Shapes layer.",
    ),
    ("Whole slide", "Predict the slide first; its areas appear here then."),
)
"""Of which areas are shown, and what to say where there are none."""
SCREEN, DRAWN, WHOLE = range(3)


class AreaPanel(QWidget):
    """The table with the choice of its place.

    Attributes
    ----------
    place_chosen
        Signal (int): `SCREEN`, `DRAWN` or `WHOLE`.
    table_requested
        Signal (str): the table shown, as CSV text, is to be saved.
    """

    place_chosen = Signal(int)
    table_requested = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._areas: list[Area] = []
        self.table = _area_table()
        self.empty = note()
        self.place = QComboBox()
        self.place.setToolTip("What the areas are of: a look at the field, a region to report on, or the whole slide")
        self.place.setAccessibleName("Areas of")
        self.place.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.place.addItems([name for name, _ in PLACES])
        self.place.activated.connect(self.place_chosen.emit)
        self.copy = button("Copy", "The table as CSV, to paste into a spreadsheet", self._on_copy)
        self.save = button(
            "Save…",
            "The table as a CSV file, for a report or to go with the slide",
            lambda: self.table_requested.emit(areas_csv(self._areas)),
        )
        layout = column(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(QLabel("Areas"), self.place, self.copy, self.save, stretch=1))
        layout.addWidget(self.empty)
        layout.addWidget(self.table)
        self.show_areas([])

    def show_areas(self, areas: Sequence[Area]) -> None:
        """Fill the table."""
        self._areas = list(areas)
        known = [a for a in self._areas if a.share > 0]
        unit = "mm²" if all(a.mm2 is not None for a in known) else "px"
        self.table.setHorizontalHeaderLabels((HEADINGS[0], unit, HEADINGS[2]))
        self.table.horizontalHeaderItem(0).setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.table.setRowCount(len(known))
        for r, a in enumerate(known):
            size = f"{a.mm2:.4g}" if a.mm2 is not None else f"{a.pixels:.4g}"
            for column_, text in enumerate((a.name, size, percent(a.share))):
                item = QTableWidgetItem(text)
                if column_ == 0:
                    item.setIcon(swatch(a.colour))
                else:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(r, column_, item)
        fit_rows(self.table, MOST_ROWS)
        self.table.setVisible(bool(known))
        self.empty.setText(PLACES[self.place.currentIndex()][1])
        self.empty.setVisible(not known)
        self.copy.setEnabled(bool(known))
        self.save.setEnabled(bool(known))

    def _on_copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(areas_csv(self._areas))


def _area_table() -> QTableWidget:
    table = QTableWidget(0, len(HEADINGS))
    table.setHorizontalHeaderLabels(HEADINGS)
    table.setToolTip("How much of each class was predicted: an unlikely share shows at once what to correct")
    table.setAccessibleName("Predicted areas")
    fix_rows(table)
    table.setShowGrid(False)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    header = table.horizontalHeader()
    header.setSectionsClickable(False)
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    for column_ in (1, 2):
        header.setSectionResizeMode(column_, QHeaderView.ResizeMode.ResizeToContents)
    return table
