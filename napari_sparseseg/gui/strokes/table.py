"""The rows of the annotation list: sorted, filtered, one per stroke or dense region."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QAbstractTableModel, QItemSelection, QModelIndex, Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from napari_sparseseg.gui.sections.classes.table import percent, swatch
from napari_sparseseg.gui.widgets import HEADING_HEIGHT, ROW_HEIGHT, plain_tip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qtpy.QtGui import QIcon, QKeyEvent

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session.strokes import ListedStroke

CLASS, KIND, PIXELS, HELD, LOSS, AGREES, PREDICTED, MARK = range(8)
HEADINGS = ("Class", "Kind", "Pixels", "Held out", "Loss", "Agrees", "Predicted as", "Mine")
TIPS = (
    "What it was labelled as",
    "How it was drawn",
    "Pixels of the full resolution that it labels still; of a large one an estimate",
    "Not trained on, so that its loss is a test; of the others the model has seen the label",
    "0 where the model is sure of the label, 6.9 at most: the largest contradict the model",
    "Share of its pixels that are predicted as its class",
    "Class that most of its pixels are predicted as",
    "You looked and stayed with your label (A); Next passes it over",
)
KINDS = {"brush": "stroke", "polygon": "polygon", "fill": "area", "dense": "dense region"}
VALUES: dict[int, Callable[[ListedStroke], Any]] = {
    PIXELS: lambda s: s.pixels, HELD: lambda s: s.held_out, LOSS: lambda s: s.loss, AGREES: lambda s: s.agreement,
}  # fmt: skip
"""What is sorted by, where it is not the text."""
WIDTHS = {KIND: "dense region", PIXELS: "1,000,000", HELD: "Held out", LOSS: "0.000", AGREES: "Agrees", MARK: "Mine"}
CELL_MARGINS = 14
KEYS = {Qt.Key.Key_N: "next", Qt.Key.Key_A: "agree", Qt.Key.Key_R: "relabel", Qt.Key.Key_Delete: "delete",
        Qt.Key.Key_Backspace: "delete"}  # fmt: skip
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class StrokeModel(QAbstractTableModel):
    """Rows as the table shows them.

    Attributes
    ----------
    agreed
        (stroke id, class id) of what the user has looked at and stays with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: tuple[ListedStroke, ...] = ()
        self._shown: list[ListedStroke] = []
        self._names: dict[int, str] = {}
        self._icons: dict[int, QIcon] = {}
        self._accept: Callable[[ListedStroke], bool] = lambda stroke: True
        self._order = (LOSS, True)
        self.agreed: set[tuple[int, int]] = set()

    @property
    def rows(self) -> tuple[ListedStroke, ...]:
        """All, also those that are filtered out."""
        return self._rows

    @property
    def shown(self) -> Sequence[ListedStroke]:
        """Those in the table, from its top."""
        return self._shown

    def show_rows(self, rows: tuple[ListedStroke, ...], classes: Sequence[ClassDef]) -> None:
        """Show other rows."""
        self._rows = rows
        self._names = {c.id: c.name for c in classes}
        self._icons = {c.id: swatch(c.colour) for c in classes}
        self._arrange()

    def show_only(self, accept: Callable[[ListedStroke], bool]) -> None:
        """Show the rows that `accept` says yes to."""
        self._accept = accept
        self._arrange()

    def agree(self, stroke: ListedStroke) -> None:
        """Mark a row as looked at; once more takes the mark away."""
        self.agreed ^= {(stroke.id, stroke.class_id)}
        self.dataChanged.emit(self.index(0, MARK), self.index(max(0, len(self._shown) - 1), MARK))

    def contradicts(self, stroke: ListedStroke) -> bool:
        """Whether a stroke is to be looked at: mostly predicted as another class, and not marked."""
        return stroke.mostly not in (None, stroke.class_id) and (stroke.id, stroke.class_id) not in self.agreed

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; rows without a value come last."""
        self._order = column, order == Qt.SortOrder.DescendingOrder
        self._arrange()

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._shown)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        return len(HEADINGS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return HEADINGS[section]
        return plain_tip(TIPS[section]) if role == Qt.ItemDataRole.ToolTipRole else None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        stroke, column = self._shown[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(stroke, column)
        if role == Qt.ItemDataRole.DecorationRole and column in (CLASS, PREDICTED):
            class_id = stroke.class_id if column == CLASS else stroke.mostly
            return None if class_id is None else self._icons.get(class_id)
        if role == Qt.ItemDataRole.TextAlignmentRole and column in (PIXELS, LOSS):
            return int(_RIGHT)
        if role == Qt.ItemDataRole.TextAlignmentRole and column in (HELD, AGREES, MARK):
            return int(Qt.AlignmentFlag.AlignCenter)
        return plain_tip(TIPS[column]) if role == Qt.ItemDataRole.ToolTipRole else None

    def _text(self, stroke: ListedStroke, column: int) -> str:
        if column in (CLASS, PREDICTED):
            class_id = stroke.class_id if column == CLASS else stroke.mostly
            return "" if class_id is None else self._names.get(class_id, str(class_id))
        if column in (HELD, MARK):
            marked = stroke.held_out if column == HELD else (stroke.id, stroke.class_id) in self.agreed
            return "✓" if marked else ""
        if column == KIND:
            return KINDS.get(stroke.kind, stroke.kind)
        value = VALUES[column](stroke)
        if value is None:
            return ""
        return {PIXELS: "{:,}".format, LOSS: "{:.2f}".format, AGREES: percent}[column](value)

    def _arrange(self) -> None:
        self.beginResetModel()
        column, reverse = self._order
        rows = sorted((s for s in self._rows if self._accept(s)), key=lambda s: s.id)
        value = VALUES.get(column, lambda s: self._text(s, column) or None)
        known = [(value(s), s) for s in rows]
        kept = sorted((p for p in known if p[0] is not None), key=lambda p: p[0], reverse=reverse)
        self._shown = [s for _, s in kept] + [s for k, s in known if k is None]
        self.endResetModel()


class StrokeTable(QTableView):
    """The table, with keys of its own.

    Attributes
    ----------
    key_pressed
        Signal (str): ``next``, ``agree``, ``relabel`` or ``delete``.
    class_pressed
        Signal (class id): a digit.
    went
        Signal (stroke): the user chose a row.
    """

    key_pressed = Signal(str)
    class_pressed = Signal(int)
    went = Signal(object)

    def __init__(self, rows: StrokeModel) -> None:
        super().__init__()
        self._rows, self._showing = rows, False
        self.setModel(rows)
        self.setSortingEnabled(True)
        self.sortByColumn(LOSS, Qt.SortOrder.DescendingOrder)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setAccessibleName("Annotations")
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setFixedHeight(HEADING_HEIGHT)
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column in range(len(HEADINGS)):
            stretches = column in (CLASS, PREDICTED)
            mode = QHeaderView.ResizeMode.Stretch if stretches else QHeaderView.ResizeMode.Interactive
            header.setSectionResizeMode(column, mode)
        for column, widest in WIDTHS.items():
            words = max((widest, HEADINGS[column] + " ▾"), key=len)
            self.setColumnWidth(column, self.fontMetrics().horizontalAdvance(words) + CELL_MARGINS)
        self.selectionModel().currentRowChanged.connect(self._on_current)
        self.clicked.connect(lambda index: self._on_current(index))

    @property
    def current(self) -> ListedStroke | None:
        """The row with the cursor."""
        index = self.currentIndex()
        return self._rows.shown[index.row()] if index.isValid() and index.row() < len(self._rows.shown) else None

    @property
    def chosen(self) -> list[ListedStroke]:
        """The selected rows."""
        ranges = self.selectionModel().selection()
        rows = {n for k in range(len(ranges)) for n in range(ranges[k].top(), ranges[k].bottom() + 1)}
        return [self._rows.shown[n] for n in sorted(rows)]

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, rows may be arranged anew: those that were selected still are, and nothing is announced."""
        ids, current = {s.id for s in self.chosen}, self.current
        self._showing = True
        yield
        model, last, again = self.selectionModel(), len(HEADINGS) - 1, QItemSelection()
        # selected at once: one by one, a thousand rows take seconds
        for chosen, rows in groupby(enumerate(self._rows.shown), lambda pair: pair[1].id in ids):
            if chosen:
                numbers = [n for n, _ in rows]
                again.select(self._rows.index(numbers[0], 0), self._rows.index(numbers[-1], last))
        at = next((n for n, s in enumerate(self._rows.shown) if current is not None and s.id == current.id), None)
        if at is not None:
            model.setCurrentIndex(self._rows.index(at, 0), model.SelectionFlag.NoUpdate)
        if ids:
            model.select(again, model.SelectionFlag.Select)
        self._showing = False

    def go(self, row: int) -> None:
        """Select one row and go there."""
        self.selectRow(row)
        self.scrollTo(self._rows.index(row, 0))

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Our keys; the others move the cursor, and Ctrl+A selects all."""
        if event is None or event.matches(QKeySequence.StandardKey.SelectAll):
            super().keyPressEvent(event)
        elif event.key() in KEYS and not event.modifiers():
            self.key_pressed.emit(KEYS[event.key()])
        elif Qt.Key.Key_1 <= event.key() <= Qt.Key.Key_9:
            self.class_pressed.emit(event.key() - Qt.Key.Key_0)
        else:
            super().keyPressEvent(event)

    def _on_current(self, index: QModelIndex, before: QModelIndex | None = None) -> None:
        if not self._showing and index.isValid():
            self.went.emit(self._rows.shown[index.row()])
