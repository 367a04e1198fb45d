"""The objects of a result as a table model: nothing is copied, and only the cells on screen are made into text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt, Signal

from napari_sparseseg.gui.sections.classes.table import swatch
from napari_sparseseg.gui.widgets import plain_tip

if TYPE_CHECKING:
    from qtpy.QtGui import QIcon

    from napari_sparseseg.io.objects import ObjectTable

ID, CLASS, REGION = "id", "class", "region"
DISTANCE = "distance_to "
LAST = ("y", "x", "y_unit", "x_unit")
"""Columns of least interest."""
HEADINGS = {
    ID: ("Id", "Number of the object, in reading order"),
    CLASS: ("Class", ""),
    REGION: ("Region", "The first region that contains the centroid"),
    "area": ("Area {u}²", "Pixels times their area"),
    "perimeter": ("Perimeter {u}", "As scikit-image measures it"),
    "circularity": ("Circularity", "4π area / perimeter²; 1 for a circle"),
    "solidity": ("Solidity", "Area / area of the convex hull"),
    "eccentricity": ("Eccentricity", "0 for a circle, towards 1 for a line"),
    "probability_mean": ("Mean probability", "Of the object's class"),
    "probability_min": ("Least probability", "Of the object's class"),
    "h_od": ("H OD", "Mean optical density of haematoxylin"),
    "e_od": ("E OD", "Mean optical density of eosin"),
    "dab_od": ("DAB OD", "Mean optical density of DAB"),
    "y": ("y px", "Centroid, in pixels of level 0"),
    "x": ("x px", "Centroid, in pixels of level 0"),
    "y_unit": ("y {u}", "Centroid"),
    "x_unit": ("x {u}", "Centroid"),
}
"""Heading and tooltip of each column; ``{u}`` is the unit of length."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects are shown, in which order."""

    sort: str = ID
    descending: bool = False
    class_id: int | None = None
    """None for all."""
    column: str = "area"
    low: float | None = None
    high: float | None = None
    """Objects without a number in `column` are left out where there is a limit."""


def find_rows(table: ObjectTable, wanted: Wanted) -> np.ndarray:
    """Indices of the objects to show, intp (m,); 50 ms for 300,000 objects, so not on the GUI thread.

    Objects without a number in the column that is sorted by come last, whatever the direction.
    """
    keep = np.ones(len(table), bool)
    if wanted.class_id is not None:
        keep &= table.class_id == wanted.class_id
    values = values_of(table, wanted.column)
    with np.errstate(invalid="ignore"):
        if wanted.low is not None:
            keep &= values >= wanted.low
        if wanted.high is not None:
            keep &= values <= wanted.high
    rows = np.flatnonzero(keep)
    keys = values_of(table, wanted.sort)[rows].astype(float)
    found: np.ndarray = rows[np.argsort(-keys if wanted.descending else keys, kind="stable")]
    return found


def values_of(table: ObjectTable, column: str) -> np.ndarray:
    """Numbers (n,) to sort and filter by: for names their place in the alphabet, for objects in no region the last."""
    if column == CLASS:
        names = [c.name for c in table.classes]
        rank = np.zeros(256)
        for place, k in enumerate(sorted(range(len(names)), key=lambda k: names[k].casefold())):
            rank[table.classes[k].id] = place
        ranked: np.ndarray = rank[table.class_id]
        return ranked
    if column == REGION:
        order = sorted(range(len(table.regions)), key=lambda k: table.regions[k].casefold())
        places = np.array([*np.argsort(np.array(order, int)), len(order)])
        return np.asarray(places[table.region])
    return table.id if column == ID else table.numbers[column]


def columns_of(table: ObjectTable) -> list[str]:
    """The columns to show; that of the regions where there are any."""
    numbers = [key for key in table.numbers if key not in LAST]
    return [ID, CLASS, *([REGION] if table.regions else []), *numbers, *(key for key in LAST if key in table.numbers)]


def heading(column: str, unit: str) -> tuple[str, str]:
    """Heading and tooltip of a column."""
    shown = unit.replace("um", "µm")
    if column.startswith(DISTANCE):
        name = column.removeprefix(DISTANCE)
        return f"To {name} {shown}", f"From the centroid to the nearest centroid of {name}"
    title, tip = HEADINGS.get(column, (column, ""))
    return title.format(u=shown), tip


def cell_text(value: float) -> str:
    """A number for reading, nothing where there is none."""
    if value != value:
        return ""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2e}"


def _side(column: str) -> Qt.AlignmentFlag:
    """Names at the left, numbers at the right."""
    side = Qt.AlignmentFlag.AlignLeft if column in (CLASS, REGION) else Qt.AlignmentFlag.AlignRight
    return side | Qt.AlignmentFlag.AlignVCenter


class ObjectModel(QAbstractTableModel):
    """Some objects of a table, in some order.

    Attributes
    ----------
    sort_requested
        Signal (column key, descending).
    """

    sort_requested = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__()
        self.table: ObjectTable | None = None
        self.rows = np.zeros(0, np.intp)
        """Indices into `table` of the objects that are shown."""
        self.columns: list[str] = []
        self._icons: dict[int, QIcon] = {}
        self._names: dict[int, str] = {}

    def show_table(self, table: ObjectTable) -> None:
        """Show all objects of a table."""
        self.beginResetModel()
        self.table, self.rows, self.columns = table, np.arange(len(table)), columns_of(table)
        self._icons = {c.id: swatch(c.colour) for c in table.classes}
        self._names = {c.id: c.name for c in table.classes}
        self.endResetModel()

    def show_rows(self, rows: np.ndarray) -> None:
        """Show other objects, or the same in another order."""
        self.beginResetModel()
        self.rows = rows
        self.endResetModel()

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if self.table is None or not index.isValid():
            return None
        column = self.columns[index.column()]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _side(column)
        row = int(self.rows[index.row()])
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(self.table, row, column)
        if role == Qt.ItemDataRole.DecorationRole and column == CLASS:
            return self._icons.get(int(self.table.class_id[row]))
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if self.table is None or orientation != Qt.Orientation.Horizontal or section >= len(self.columns):
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _side(self.columns[section])
        title, tip = heading(self.columns[section], self.table.unit)
        if role == Qt.ItemDataRole.DisplayRole:
            return title
        return plain_tip(f"{tip}\nClick to sort".lstrip()) if role == Qt.ItemDataRole.ToolTipRole else None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        if 0 <= column < len(self.columns):
            self.sort_requested.emit(self.columns[column], order == Qt.SortOrder.DescendingOrder)

    def _text(self, table: ObjectTable, row: int, column: str) -> str:
        if column == ID:
            return str(table.id[row])
        if column == CLASS:
            return self._names.get(int(table.class_id[row]), "")
        if column == REGION:
            k = int(table.region[row])
            return table.regions[k] if k >= 0 else ""
        return cell_text(float(table.numbers[column][row]))
