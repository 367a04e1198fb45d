"""How one number is distributed over the objects of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QWidget

from napari_sparseseg.gui.results.model import CLASS, ID, LAST, REGION, columns_of, heading
from napari_sparseseg.gui.widgets import NameBox, column, note, row

if TYPE_CHECKING:
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.io.objects import ObjectTable

BINS = 40
LEFT_AXIS = 44
WIDE = ("area", "perimeter")
"""Numbers over several orders of magnitude: their scale is logarithmic until the user says otherwise."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of the objects of each class in common bins."""

    edges: np.ndarray
    """float (n + 1,), or their decimal logarithms."""
    shares: dict[int, np.ndarray]
    """By class id: percent (n,) of the class's objects that have a number."""
    counts: dict[int, int]
    """By class id: objects that have a number."""


def histogram(table: ObjectTable, rows: np.ndarray, column: str, *, logarithmic: bool = False) -> Histogram:
    """Count objects, those in `rows`, in bins from the least to the greatest number of any class.

    Parameters
    ----------
    rows
        Indices into the table.
    column
        Of `ObjectTable.numbers`.
    logarithmic
        Bins of equal ratio; numbers that are not above 0 are left out.
    """
    values, ids = table.numbers[column][rows], table.class_id[rows]
    known = np.isfinite(values) & ((values > 0) | (not logarithmic))
    values, ids = values[known], ids[known]
    if logarithmic:
        values = np.log10(values)
    if not len(values):
        return Histogram(np.array([0.0, 1.0]), {}, {})
    edges = np.histogram_bin_edges(values, BINS)
    shares, counts = {}, {}
    for c in table.classes:
        mine = values[ids == c.id]
        if len(mine):
            shares[c.id], counts[c.id] = 100 * np.histogram(mine, edges)[0] / len(mine), len(mine)
    return Histogram(edges, shares, counts)


def log_ticks(edges: np.ndarray) -> list[tuple[float, str]]:
    """Where an axis of decimal logarithms has a tick, and which number it shows: 1, 2 and 5 times powers of ten."""
    low, high = edges[0], edges[-1]
    factors = (1, 2, 5) if high - low < 4 else (1,)
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    places = [(k + float(np.log10(f)), f * 10.0**k) for k in powers for f in factors]
    return [(at, f"{value:,.6g}") for at, value in places if low - 0.05 <= at <= high + 0.05]


class HistogramTab(QWidget):
    """A number to choose and its histogram for each class.

    Attributes
    ----------
    chosen
        Signal (): see `column` and `logarithmic`.
    """

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.number = NameBox("The number whose distribution is shown")
        self.number.setAccessibleName("Number")
        self.logarithmic = QCheckBox("Logarithmic")
        self.logarithmic.setToolTip("Bins of equal ratio, for numbers over several orders of magnitude, such as areas")
        self.number.activated.connect(lambda _: self._on_number())
        self.logarithmic.toggled.connect(lambda _: self.chosen.emit())
        self.of = note()
        self._plot: Any = None
        self._palette: Palette | None = None
        self._table: ObjectTable | None = None
        self.shown: Histogram | None = None
        """What is plotted."""
        self._layout = column(self)
        self._layout.addLayout(row(QLabel("Histogram of"), self.number, self.logarithmic, self.of, stretch=3))
        self._layout.addStretch(0)

    @property
    def column(self) -> str:
        """Which number; empty where there is none."""
        return str(self.number.currentData() or "")

    def show_table(self, table: ObjectTable) -> None:
        """Offer the numbers of another table."""
        before = self.column
        self._table = table
        self.number.clear()
        for key in columns_of(table):
            if key not in (ID, CLASS, REGION, *LAST):
                self.number.addItem(heading(key, table.unit)[0], key)
        found = self.number.findData(before)
        if found >= 0:
            self.number.setCurrentIndex(found)
        else:
            self._suggest_scale()

    def show_histogram(self, shown: Histogram, objects: int) -> None:
        """Plot it; `objects` is how many are shown in the table."""
        self.shown = shown
        table = self._table
        if table is None:
            return
        plot = self._ready()
        plot.clear()
        for c in table.classes:
            if c.id in shown.shares:
                import pyqtgraph

                # by what the class is called, not by colour alone
                name = f"{c.name} ({shown.counts[c.id]:,})"
                pen = pyqtgraph.mkPen(c.colour, width=2)
                plot.plot(shown.edges, shown.shares[c.id], stepMode="center", pen=pen, name=name)
        plot.getAxis("bottom").setTicks([log_ticks(shown.edges)] if self.logarithmic.isChecked() else None)
        plot.setLabel("bottom", heading(self.column, table.unit)[0])
        plot.enableAutoRange()
        self.of.setText(f"{objects:,} objects, as under Objects" if shown.shares else "No object has this number.")

    def _on_number(self) -> None:
        self._suggest_scale()
        self.chosen.emit()

    def _suggest_scale(self) -> None:
        self.logarithmic.blockSignals(True)
        self.logarithmic.setChecked(self.column in WIDE)
        self.logarithmic.blockSignals(False)

    def paint(self, palette: Palette) -> None:
        """Apply the colours of a theme."""
        self._palette = palette
        if self._plot is not None:
            self._plot.setBackground(palette.background)
            for side in ("left", "bottom"):
                self._plot.getAxis(side).setPen(palette.muted)
                self._plot.getAxis(side).setTextPen(palette.text)
            self._plot.plotItem.legend.setLabelTextColor(palette.text)

    def _ready(self) -> Any:
        """The plot, made when it is first needed."""
        if self._plot is None:
            import pyqtgraph

            self._plot = pyqtgraph.PlotWidget(enableMenu=False)
            self._plot.setMouseEnabled(x=False, y=False)
            self._plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            self._plot.hideButtons()
            self._plot.addLegend(offset=(-8, 4))
            self._plot.setLabel("left", "% of the class")
            self._plot.getAxis("left").setWidth(LEFT_AXIS)
            self._plot.getAxis("left").enableAutoSIPrefix(False)
            self._plot.getAxis("bottom").enableAutoSIPrefix(False)
            self._layout.insertWidget(1, self._plot, 1)
            if self._palette is not None:
                self.paint(self._palette)
        return self._plot
