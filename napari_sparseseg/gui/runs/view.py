"""The training runs as a dock: the list, two of them side by side, and the curves of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QFont
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QSplitter,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_sparseseg.gui.sections.train.charts import Curves
from napari_sparseseg.gui.widgets import SPACING, ElidedLabel, button, fix_rows, panel_sheet, plain_tip, row
from napari_sparseseg.session.runs import side_by_side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.session.run_files import KeptRun

NAME, ENDED, DICE, STEPS, SECONDS, STROKES, BALANCING = range(7)
HEADINGS = ("Run", "Ended", "Dice", "Steps", "Time", "Strokes", "Balancing")
TIPS = (
    "Double-click to name it; a run with a name is never deleted. ● predicts now",
    "When it ended",
    "Mean held-out Dice of its model",
    "Steps of its model, those of the runs that it continued from included",
    "Training time, pauses left out",
    "Annotations of all slides that it was trained on",
    "How labelled pixels were weighted",
)
HEIGHT, LIST_WIDTH, FACTS_WIDTH, CURVES_WIDTH = 260, 620, 420, 260
EMPTY = "No training run was kept yet: each one that ends is listed here."


class RunDock(QWidget):
    """What is in the dock.

    Attributes
    ----------
    use_requested, export_requested, difference_requested, rename_requested
        Signals (run), (run), (run, run), (run, name).
    """

    use_requested = Signal(object)
    export_requested = Signal(object)
    difference_requested = Signal(object, object)
    rename_requested = Signal(object, str)

    def __init__(self) -> None:
        super().__init__()
        self._runs: tuple[KeptRun, ...] = ()
        self._in_use, self._filling = "", False
        self.table = QTableWidget(0, len(HEADINGS))
        self.facts = QTableWidget(0, 3)
        self.curves = Curves()
        self.status = ElidedLabel(EMPTY)
        self.use = button(
            "Go back to it", "Predict with the model of the selected run, and continue from it", self._on_use
        )
        self.difference = button(
            "Show difference",
            "Predict what is on screen with the two selected runs (Ctrl and click), and show where they differ",
            lambda: self.difference_requested.emit(*self.chosen),
        )
        self.export = button(
            "Save model…",
            "Save the model of the selected run as one file",
            lambda: self.export_requested.emit(self.chosen[0]),
        )
        self.differing = QCheckBox("Only what differs")
        self.differing.setToolTip(plain_tip("Of two selected runs, list only what they do not have in common"))
        self.differing.setChecked(True)
        self._lay_out()
        self.table.itemSelectionChanged.connect(self._on_selected)
        self.table.itemChanged.connect(self._on_edited)
        self.differing.toggled.connect(self._show_facts)
        self._on_selected()

    def _lay_out(self) -> None:
        self.table.setHorizontalHeaderLabels(list(HEADINGS))
        for table, name in ((self.table, "Training runs"), (self.facts, "Comparison")):
            table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
            table.setShowGrid(False)
            table.setWordWrap(False)
            table.setTabKeyNavigation(False)
            table.setAccessibleName(name)
            fix_rows(table)
            table.horizontalHeader().setHighlightSections(False)
            table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
            table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.facts.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.facts.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        for column, tip in enumerate(TIPS):
            self.table.horizontalHeaderItem(column).setToolTip(plain_tip(tip))
        width = self.table.fontMetrics().horizontalAdvance
        for column, widest in ((ENDED, "0000-00-00 00:00"), (BALANCING, "mini-batch"), (STEPS, "100000")):
            self.table.setColumnWidth(column, width(widest) + 28)
        for column in (DICE, SECONDS, STROKES):
            self.table.setColumnWidth(column, width("Strokes") + 16)
        left, right = QWidget(), QWidget()
        for part, widgets, below in (
            (left, self.table, row(self.use, self.difference, self.export, self.status, stretch=3)),
            (right, self.facts, row(self.differing, QWidget(), stretch=1)),
        ):
            inner = QVBoxLayout(part)
            inner.setContentsMargins(0, 0, 0, 0)
            inner.setSpacing(SPACING)
            inner.addWidget(widgets, 1)
            inner.addLayout(below)
        splitter = QSplitter(Qt.Orientation.Horizontal)
        for part in (left, right, self.curves):
            splitter.addWidget(part)
        splitter.setStretchFactor(0, 1)
        splitter.setSizes([LIST_WIDTH, FACTS_WIDTH, CURVES_WIDTH])
        splitter.setChildrenCollapsible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 2, 4, 4)
        layout.addWidget(splitter)
        self.setMinimumHeight(HEIGHT)

    @property
    def chosen(self) -> list[KeptRun]:
        """The selected runs, from the top."""
        return [self._runs[n] for n in sorted({i.row() for i in self.table.selectedIndexes()})]

    def show_runs(self, runs: Sequence[KeptRun], in_use: str, problems: Sequence[str]) -> None:
        """Show other runs; what is selected stays selected."""
        before = {run.id for run in self.chosen}
        self._filling = True
        self._runs, self._in_use = tuple(runs), in_use
        self.table.clearSelection()
        self.table.setRowCount(len(runs))
        for n, run in enumerate(runs):
            for column, text in enumerate(_texts(run)):
                self.table.setItem(n, column, self._item(run, column, text))
        self._filling = False
        mode = self.table.selectionMode()
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for n, run in enumerate(runs):
            if run.id in before:
                self.table.selectRow(n)
        self.table.setSelectionMode(mode)
        self.status.setText("; ".join(problems) or ("" if runs else EMPTY))
        self._on_selected()

    def paint(self, colours: Palette) -> None:
        """Apply the colours of a theme."""
        self.setStyleSheet(panel_sheet(colours))
        self.curves.paint(colours)

    def _item(self, run: KeptRun, column: int, text: str) -> QTableWidgetItem:
        used = run.id == self._in_use
        item = QTableWidgetItem(f"● {text}" if used and column == NAME else text)
        if column != NAME:
            item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
        if used:
            font = QFont(item.font())
            font.setBold(True)
            item.setFont(font)
        item.setToolTip(plain_tip(text if column == NAME else TIPS[column]))
        return item

    def _on_edited(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != NAME:
            return
        run = self._runs[item.row()]
        name = item.text().strip().removeprefix("● ").strip()
        if name not in (run.story.name, _texts(run)[NAME]) or not name:
            self.rename_requested.emit(run, name)

    def _on_use(self) -> None:
        self.use_requested.emit(self.chosen[0])

    def _on_selected(self) -> None:
        if self._filling:
            return
        chosen = self.chosen
        self.use.setEnabled(len(chosen) == 1 and chosen[0].id != self._in_use)
        self.export.setEnabled(len(chosen) == 1)
        self.difference.setEnabled(len(chosen) == 2)
        self._show_facts()
        story = chosen[0].story if chosen else None
        self.curves.show_curves(() if story is None else story.losses, () if story is None else story.scores)

    def _show_facts(self) -> None:
        chosen = self.chosen[:2]
        rows: dict[str, tuple[Any, Any]] = side_by_side(chosen[0], chosen[-1]) if chosen else {}
        two = len(chosen) == 2
        if two and self.differing.isChecked():
            rows = {name: pair for name, pair in rows.items() if pair[0] != pair[1]}
        self.differing.setEnabled(two)
        self.facts.setColumnHidden(2, not two)
        titles = ["", *(run.title for run in chosen), "", ""]
        self.facts.setHorizontalHeaderLabels(titles[:3])
        self.facts.setRowCount(len(rows))
        for n, (name, pair) in enumerate(rows.items()):
            for column, value in enumerate((name, *pair)):
                item = QTableWidgetItem(_shown(value))
                item.setToolTip(plain_tip(_shown(value)))
                self.facts.setItem(n, column, item)


def _texts(run: KeptRun) -> tuple[str, ...]:
    minutes, seconds = divmod(int(run.story.seconds), 60)
    name = run.story.name or ("unnamed" if run.story.trained else "loaded model")
    return (
        name, f"{run.ended:%Y-%m-%d %H:%M}", "–" if run.dice is None else f"{run.dice:.2f}",
        str(run.metadata.step), f"{minutes}:{seconds:02d}" if run.story.trained else "–", str(run.strokes),
        run.config.balancing,
    )  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:1000]
