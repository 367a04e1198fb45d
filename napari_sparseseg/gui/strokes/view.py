"""The annotation list as a dock: filters, table and buttons, and the confusion matrix whose cells filter the table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QMenu,
    QSplitter,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_sparseseg.gui.sections.classes.table import percent, swatch
from napari_sparseseg.gui.strokes.table import StrokeModel, StrokeTable
from napari_sparseseg.gui.widgets import (
    HEADING_HEIGHT,
    ROW_HEIGHT,
    SPACING,
    ElidedLabel,
    NameBox,
    button,
    menu_button,
    mix,
    note,
    panel_sheet,
    plain_tip,
    row,
)
from napari_sparseseg.session.strokes import confusion_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.session.strokes import ListedStroke

SHOW = ("All", "Held out", "Contradict the model", "Nothing left")
MATRIX_WIDTH, NAME_WIDTH, CELL_WIDTH = 380, 150, 52
HEIGHT = 250
NO_SCORES = "Train or load a model to see where labels contradict it."


class StrokeDock(QWidget):
    """What is in the dock.

    Attributes
    ----------
    rows, table
        The annotations, and how they are shown.
    went
        Signal (stroke): show it on the slide.
    change_requested
        Signal (strokes, class id): give them this class; 0: delete them.
    update_requested, docked
        Signals (): score again; the dock was opened or closed.
    """

    went = Signal(object)
    change_requested = Signal(object, int)
    update_requested = Signal()
    docked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._classes: tuple[ClassDef, ...] = ()
        self.rows = StrokeModel()
        self.table = StrokeTable(self.rows)
        self.only_class = NameBox("Show the annotations of one class")
        self.only = NameBox("Show those held out, or those that the model would label otherwise")
        self.only.addItems(SHOW)
        self.update_button = button(
            "Update", "Score all annotations with the current model; training slows down meanwhile",
            self.update_requested.emit,
        )  # fmt: skip
        self.next = button(
            "Next", "Go to the next annotation that the model would label otherwise (N in the table)", self.go_to_next
        )
        self.agree = button(
            "Keep mine", "The label is right, the model is not: Next passes it over from now on (A)", self._on_agree
        )
        self.relabel = menu_button("Relabel", "Give the selected annotations another class (R: the predicted one)", ())
        self.delete = button(
            "Delete", "Delete the selected annotations (Delete); Ctrl+Z restores them", self._on_delete
        )
        self.status = ElidedLabel()
        self.matrix = ConfusionMatrix()
        self._lay_out()
        self.table.went.connect(self.went.emit)
        self.table.key_pressed.connect(self._on_key)
        self.table.class_pressed.connect(self._on_class)
        self.table.selectionModel().selectionChanged.connect(self._show_buttons)
        self.only_class.activated.connect(self._filter)
        self.only.activated.connect(self._filter)
        self.matrix.changed.connect(self._filter)
        self._show_buttons()

    def _lay_out(self) -> None:
        left, splitter = QWidget(), QSplitter(Qt.Orientation.Horizontal)
        inner = QVBoxLayout(left)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(SPACING)
        inner.addLayout(row(self.only_class, self.only, self.status, self.update_button, stretch=2))
        inner.addWidget(self.table, 1)
        inner.addLayout(row(self.next, self.agree, self.relabel, self.delete, QWidget(), stretch=4))
        splitter.addWidget(left)
        splitter.addWidget(self.matrix)
        splitter.setStretchFactor(0, 1)
        splitter.setSizes([900, MATRIX_WIDTH])
        splitter.setChildrenCollapsible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 2, 4, 4)
        layout.addWidget(splitter)
        self.setMinimumHeight(HEIGHT)

    def event(self, event: QEvent | None) -> bool:
        """Tell when the dock opens or closes."""
        handled = bool(super().event(event))
        if event is not None and event.type() in (QEvent.Type.Show, QEvent.Type.ParentChange):
            self.docked.emit()
        return handled

    def show_rows(self, rows: tuple[ListedStroke, ...], classes: Sequence[ClassDef]) -> None:
        """Show the annotations of a slide; what is selected stays selected."""
        if tuple(classes) != self._classes:
            self._show_classes(tuple(classes))
        with self.table.keeping():
            self.rows.show_rows(rows, classes)
        self.matrix.show_strokes(rows, self._classes)
        self._show_buttons()

    def _show_classes(self, classes: tuple[ClassDef, ...]) -> None:
        chosen, self._classes = self.only_class.currentData(), classes
        self.only_class.clear()
        self.only_class.addItem("All classes", 0)
        menu: QMenu = self.relabel.menu()
        menu.clear()
        for c in classes:
            icon = swatch(c.colour)
            self.only_class.addItem(icon, c.name, c.id)
            menu.addAction(icon, c.name.replace("&", "&&")).triggered.connect(
                lambda _=False, class_id=c.id: self._change(class_id)
            )
        self.only_class.setCurrentIndex(max(0, self.only_class.findData(chosen)))

    def go_to_next(self) -> None:
        """Go to the next row, from the cursor on and round, that contradicts the model."""
        shown, current = self.rows.shown, self.table.current
        at = next((n for n, s in enumerate(shown) if current is not None and s.id == current.id), -1)
        found = next((n for n in (*range(at + 1, len(shown)), *range(at + 1)) if self.rows.contradicts(shown[n])), None)
        if found is None:
            scored = any(s.loss is not None for s in shown)
            self.status.setText("None of these contradicts the model." if scored else NO_SCORES)
            return
        self.table.go(found)
        self.table.setFocus()

    def paint(self, colours: Palette) -> None:
        """Apply the colours of a theme."""
        sheet = panel_sheet(colours)
        if sheet != self.styleSheet():
            self.setStyleSheet(sheet)
        self.matrix.paint(colours)

    def _filter(self) -> None:
        class_id, what, cell = self.only_class.currentData(), self.only.currentText(), self.matrix.cell
        held_only = self.matrix.held_only

        def accept(s: ListedStroke) -> bool:
            if cell is not None:
                return s.class_id == cell[0] and bool(s.predicted.get(cell[1])) and (s.held_out or not held_only)
            kinds = {SHOW[0]: True, SHOW[1]: s.held_out, SHOW[2]: self.rows.contradicts(s), SHOW[3]: not s.pixels}
            return kinds[what] and class_id in (0, None, s.class_id)

        for box in (self.only_class, self.only):
            box.setEnabled(cell is None)
        with self.table.keeping():
            self.rows.show_only(accept)
        self._show_buttons()

    def _show_buttons(self) -> None:
        chosen = bool(self.table.selectionModel().hasSelection())
        for made in (self.agree, self.relabel, self.delete):
            made.setEnabled(chosen)
        self.next.setEnabled(any(s.loss is not None for s in self.rows.rows))

    def _on_key(self, key: str) -> None:
        calls = {"next": self.go_to_next, "agree": self._on_agree, "delete": self._on_delete}
        calls.get(key, self._on_relabel)()

    def _on_class(self, class_id: int) -> None:
        if class_id in {c.id for c in self._classes}:
            self._change(class_id)

    def _on_agree(self) -> None:
        for stroke in self.table.chosen:
            self.rows.agree(stroke)
        self.go_to_next()

    def _on_relabel(self) -> None:
        """Give each selected row the class that it is predicted as."""
        chosen = [s for s in self.table.chosen if s.mostly not in (None, s.class_id)]
        for class_id in {s.mostly for s in chosen}:
            self.change_requested.emit([s for s in chosen if s.mostly == class_id], class_id)

    def _on_delete(self) -> None:
        self._change(0)

    def _change(self, class_id: int) -> None:
        chosen = [s for s in self.table.chosen if s.class_id != class_id]
        if chosen:
            self.change_requested.emit(chosen, class_id)


class ConfusionMatrix(QWidget):
    """Labelled class down, predicted class across, in percent of the row; a click on a cell filters the list.

    Attributes
    ----------
    changed
        Signal (): `cell` or `held_only` is another.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._strokes: tuple[ListedStroke, ...] = ()
        self._classes: tuple[ClassDef, ...] = ()
        self._ground, self._accent = "#262930", "#007acc"
        self.cell: tuple[int, int] | None = None
        """(labelled, predicted) class id that the list is limited to; None: no limit."""
        self.title = note("Labelled (rows) and predicted (columns)")
        self.every = QCheckBox("Also strokes trained on")
        self.every.setToolTip(
            plain_tip("Count all annotations; without, only those held out, which the model has not been trained on")
        )
        self.empty = note()
        self.clear = button("Show all", "Show the annotations of all cells again", partial(self._choose, None))
        self.table = QTableWidget()
        self.table.setAccessibleName("Confusion matrix")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.table.verticalHeader().setMaximumWidth(NAME_WIDTH)
        self.table.horizontalHeader().setFixedHeight(HEADING_HEIGHT)
        self.table.horizontalHeader().setMinimumSectionSize(CELL_WIDTH)
        self.table.cellClicked.connect(self._on_click)
        self.every.toggled.connect(self._on_every)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACING)
        layout.addWidget(self.title)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.empty, 1)
        layout.addLayout(row(self.every, QWidget(), self.clear, stretch=1))
        self.clear.setEnabled(False)
        self.setMinimumWidth(220)

    @property
    def held_only(self) -> bool:
        """Whether only held-out annotations count."""
        return not self.every.isChecked()

    def show_strokes(self, strokes: tuple[ListedStroke, ...], classes: tuple[ClassDef, ...]) -> None:
        """Count strokes, of these classes."""
        self._strokes = strokes
        if classes != self._classes:
            self._classes = classes
            self._choose(None)
        self._show()

    def paint(self, colours: Palette) -> None:
        """Apply the colours of a theme."""
        self._ground, self._accent = colours.background, colours.accent
        self._show()

    def _show(self) -> None:
        ids = [c.id for c in self._classes]
        counted = [s for s in self._strokes if s.held_out or not self.held_only]
        counts = confusion_of(counted, ids)
        self.table.setVisible(bool(counts.any()))
        self.empty.setVisible(not counts.any())
        if not counts.any():
            scored = any(s.loss is not None for s in self._strokes)
            self.empty.setText(
                "No held-out annotation on this slide: tick the box below to count all." if scored else NO_SCORES
            )
            return
        for heads, count in ((self.table.setColumnCount, len(ids)), (self.table.setRowCount, len(ids))):
            heads(count)
        for k, c in enumerate(self._classes):
            across = QTableWidgetItem(swatch(c.colour), str(c.id))
            down = QTableWidgetItem(swatch(c.colour), f"{c.id} {c.name}")
            for head in (across, down):
                head.setToolTip(plain_tip(c.name))
            self.table.setHorizontalHeaderItem(k, across)
            self.table.setVerticalHeaderItem(k, down)
            self.table.setColumnWidth(k, CELL_WIDTH)
            total = int(counts[k].sum())
            for j, other in enumerate(self._classes):
                share = counts[k, j] / total if total else 0.0
                item = QTableWidgetItem(percent(share) if total else "–")
                item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
                item.setBackground(QColor(mix(self._ground, self._accent, 0.7 * share)))
                item.setToolTip(
                    plain_tip(
                        f"{counts[k, j]:,} of {total:,} pixels of {c.name} predicted as {other.name}; click to list"
                    )
                )
                self.table.setItem(k, j, item)

    def _on_click(self, at: int, across: int) -> None:
        cell = self._classes[at].id, self._classes[across].id
        self._choose(None if cell == self.cell else cell)

    def _choose(self, cell: tuple[int, int] | None) -> None:
        if cell is None:
            self.table.clearSelection()
        if cell != self.cell:
            self.cell = cell
            self.clear.setEnabled(cell is not None)
            self.changed.emit()

    def _on_every(self) -> None:
        self._show()
        self.changed.emit()
