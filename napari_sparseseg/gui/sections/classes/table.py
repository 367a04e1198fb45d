"""The class table: name, colour, visibility, lock, and how much is labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QRectF, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPainter, QPen, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_sparseseg.gui.widgets import fit_rows, fix_rows, plain_tip

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qtpy.QtGui import QKeyEvent

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.sections.train.controller import LabelStatistics
    from napari_sparseseg.gui.widgets import Palette

VISIBLE, LOCK, COLOUR, NAME, KEY, STROKES, SHARE = range(7)
HEADINGS = ("", "", "", "Class", "Key", "Strokes", "Share")
TIPS = (
    "Untick to hide the annotations of a class",
    "Click (or press L) to lock: a locked class cannot be drawn over or erased",
    "Double-click to change the colour",
    "Click to draw with this class, double-click to rename it; exports use this name",
    "Press this key over the slide to draw with this class",
    "Strokes on all training slides; with two or more, one is held out to measure how good the model is",
    "Share of all labelled pixels; the bars below Train show its weight in training",
)
SWATCH, ICON_WIDTH, CELL_MARGINS = 16, 22, 8
WIDEST = {KEY: "Key", STROKES: "Strokes", SHARE: "100 %"}
MOST_ROWS = 12
"""Rows shown before the table scrolls."""
LAST_KEY = 9


class ClassTableView(QTableWidget):
    """One row per class; the selected class is the one the brush draws.

    Attributes
    ----------
    class_selected
        Signal (class id).
    renamed
        Signal (class id, name).
    colour_requested
        Signal (class id): the user wants to choose a colour.
    visibility_changed, locks_changed
        Signals (): see `hidden` and `locked`.
    move_requested, remove_requested
        Signals (-1 up or 1 down), (): of the selected class, by keys.
    """

    class_selected = Signal(int)
    renamed = Signal(int, str)
    colour_requested = Signal(int)
    visibility_changed = Signal()
    locks_changed = Signal()
    move_requested = Signal(int)
    remove_requested = Signal()

    def __init__(self) -> None:
        super().__init__(0, len(HEADINGS))
        self._classes: tuple[ClassDef, ...] = ()
        self._showing = False
        self._locked: frozenset[int] = frozenset()
        self._ink = "#808080"
        self.setHorizontalHeaderLabels(HEADINGS)
        for i, tip in enumerate(TIPS):
            self.horizontalHeaderItem(i).setToolTip(plain_tip(tip))  # type: ignore[union-attr,unused-ignore]
        self.horizontalHeaderItem(NAME).setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        fix_rows(self)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)  # long names often differ only at the end
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTabKeyNavigation(False)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(20)
        header.setHighlightSections(False)
        header.setSectionsClickable(False)
        for column, widest in WIDEST.items():
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            self.setColumnWidth(column, self.fontMetrics().horizontalAdvance(widest) + CELL_MARGINS)
        for column in (VISIBLE, LOCK, COLOUR):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            self.setColumnWidth(column, ICON_WIDTH)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.itemChanged.connect(self._on_item_changed)
        self.cellClicked.connect(self._on_click)
        self.itemSelectionChanged.connect(self._on_selection)
        self.cellDoubleClicked.connect(self._on_double_click)

    @property
    def hidden(self) -> frozenset[int]:
        """Ids of the hidden classes."""
        return frozenset(
            c.id for r, c in enumerate(self._classes) if self.item(r, VISIBLE).checkState() != Qt.CheckState.Checked
        )

    @property
    def locked(self) -> frozenset[int]:
        """Ids of the locked classes."""
        return self._locked & {c.id for c in self._classes}

    @property
    def selected(self) -> int | None:
        """Id of the selected class."""
        row = self.currentRow()
        return self._classes[row].id if 0 <= row < len(self._classes) else None

    def show_classes(self, classes: Sequence[ClassDef], hidden: Collection[int]) -> None:
        """Fill the table; the selection stays on the same class."""
        before = self.selected
        self._classes, self._showing = tuple(classes), True
        self.setRowCount(len(self._classes))
        for r, c in enumerate(self._classes):
            visible = _item("", TIPS[VISIBLE])
            visible.setFlags(visible.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            visible.setCheckState(Qt.CheckState.Unchecked if c.id in hidden else Qt.CheckState.Checked)
            colour = _item("", f"{c.colour}. {TIPS[COLOUR]}")
            colour.setIcon(swatch(c.colour))
            lock = _item("", TIPS[LOCK])
            name = _item(c.name, f"{c.name}\n{TIPS[NAME]}", editable=True)
            key = _item(str(c.id) if c.id <= LAST_KEY else "", TIPS[KEY], centre=True)
            for column, item in ((VISIBLE, visible), (LOCK, lock), (COLOUR, colour), (NAME, name), (KEY, key)):
                self.setItem(r, column, item)
            for column in (STROKES, SHARE):
                self.setItem(r, column, _item("–", TIPS[column], right=True))
        self._showing = False
        self._show_locks()
        self.select_class(before if before in {c.id for c in classes} else None)
        fit_rows(self, MOST_ROWS)

    def show_statistics(self, statistics: LabelStatistics) -> None:
        """Fill in strokes and shares."""
        self._showing = True
        for r, c in enumerate(self._classes):
            strokes = statistics.strokes.get(c.id, 0)
            share = statistics.pixel_share(c.id)
            self.item(r, STROKES).setText(str(strokes) if strokes else "–")
            self.item(r, SHARE).setText(percent(share) if share else "–")
        self._showing = False

    def toggle_lock(self, class_id: int) -> None:
        """Lock or unlock a class."""
        self._locked ^= {class_id}
        self._show_locks()
        self.locks_changed.emit()

    def paint(self, palette: Palette) -> None:
        """Apply the colours of a theme."""
        self._ink = palette.text
        self._show_locks()

    def _show_locks(self) -> None:
        self._showing = True
        for r, c in enumerate(self._classes):
            locked = c.id in self._locked
            self.item(r, LOCK).setIcon(padlock(self._ink, locked=locked))
            self.item(r, LOCK).setData(Qt.ItemDataRole.AccessibleTextRole, "locked" if locked else "not locked")
        self._showing = False

    def select_class(self, class_id: int | None) -> None:
        """Select a row without emitting `class_selected`."""
        self._showing = True
        row = next((r for r, c in enumerate(self._classes) if c.id == class_id), -1)
        if row < 0:
            self.clearSelection()
            self.setCurrentCell(-1, -1)
        elif self.currentRow() != row:
            self.setCurrentCell(row, NAME)
        self._showing = False

    def edit_name(self, class_id: int) -> None:
        """Start editing a name."""
        row = next((r for r, c in enumerate(self._classes) if c.id == class_id), None)
        if row is not None:
            self.setCurrentCell(row, NAME)
            self.editItem(self.item(row, NAME))

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Space shows or hides, L locks, Enter renames, Alt with an arrow moves, Delete removes; others go to Qt."""
        item = self.item(self.currentRow(), VISIBLE)
        if self.state() == QAbstractItemView.State.EditingState:  # the name editor passes Return on
            item = None
        if event is None or item is None or not self._on_key(event, self._classes[self.currentRow()].id, item):
            super().keyPressEvent(event)

    def _on_key(self, event: QKeyEvent, class_id: int, item: QTableWidgetItem) -> bool:
        """Handle one of our keys; return whether it was one."""
        key = event.key()
        if key in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            if not event.modifiers() & Qt.KeyboardModifier.AltModifier:
                return False
            self.move_requested.emit(-1 if key == Qt.Key.Key_Up else 1)
        elif key == Qt.Key.Key_Space:
            on = item.checkState() == Qt.CheckState.Checked
            item.setCheckState(Qt.CheckState.Unchecked if on else Qt.CheckState.Checked)
        elif key == Qt.Key.Key_L:
            self.toggle_lock(class_id)
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.edit_name(class_id)
        elif key == Qt.Key.Key_Delete:
            self.remove_requested.emit()
        else:
            return False
        return True

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if self._showing:
            return
        if item.column() == VISIBLE:
            self.visibility_changed.emit()
        elif item.column() == NAME:
            c = self._classes[item.row()]
            if item.text().strip() and item.text().strip() != c.name:
                self.renamed.emit(c.id, item.text().strip())
            else:
                self._showing = True
                item.setText(c.name)
                self._showing = False

    def _on_selection(self) -> None:
        if not self._showing and self.selected is not None:
            self.class_selected.emit(self.selected)

    def _on_click(self, row: int, column: int) -> None:
        if column == LOCK:
            self.toggle_lock(self._classes[row].id)

    def _on_double_click(self, row: int, column: int) -> None:
        if column == COLOUR:
            self.colour_requested.emit(self._classes[row].id)


def swatch(colour: str) -> QIcon:
    """A square of that colour."""
    pixmap = QPixmap(SWATCH, SWATCH)
    pixmap.fill(QColor(colour))
    icon = QIcon(pixmap)
    icon.addPixmap(pixmap, QIcon.Mode.Selected)
    icon.addPixmap(pixmap, QIcon.Mode.Disabled)
    return icon


def padlock(colour: str, *, locked: bool) -> QIcon:
    """A padlock: closed and filled, or open and faint."""
    pixmap = QPixmap(2 * SWATCH, 2 * SWATCH)
    pixmap.setDevicePixelRatio(2.0)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setOpacity(1.0 if locked else 0.4)
    painter.setPen(QPen(QColor(colour), 1.6))
    if locked:
        painter.setBrush(QColor(colour))
    painter.drawRoundedRect(QRectF(3, 7, 10, 7), 1, 1)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    left = 5 if locked else 8  # an open shackle hangs over the side
    painter.drawArc(QRectF(left, 2, 6, 10), 0, 180 * 16)
    painter.end()
    icon = QIcon(pixmap)
    icon.addPixmap(pixmap, QIcon.Mode.Selected)
    return icon


def percent(share: float) -> str:
    """``34 %``; less than 1 % is ``<1 %``."""
    return "<1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def _item(
    text: str, tip: str, *, editable: bool = False, centre: bool = False, right: bool = False
) -> QTableWidgetItem:
    item = QTableWidgetItem(text)
    item.setToolTip(plain_tip(tip))
    if not editable:
        item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
    if centre:
        item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
    if right:
        item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return item
