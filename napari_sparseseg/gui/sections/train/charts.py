"""Charts of the Train section: learning curves, and the share of every class in the labels and in the loss."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QLabel, QSizePolicy, QToolTip, QVBoxLayout, QWidget

from napari_sparseseg.gui.sections.classes.table import percent
from napari_sparseseg.gui.widgets import plain_tip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qtpy.QtCore import QObject
    from qtpy.QtGui import QHelpEvent, QPaintEvent

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.widgets import Palette

HEIGHT, LABEL_HEIGHT = 96, 50
LEFT_AXIS, DESCENDERS = 38, 6
MOST_POINTS = 2000


def import_plots() -> None:
    """Import pyqtgraph; call it off the GUI thread, which it would block for 0.4 s."""
    importlib.import_module("pyqtgraph")


class Curves(QWidget):
    """Held-out Dice above, loss below, over seconds of training."""

    def __init__(self) -> None:
        super().__init__()
        self._box = QVBoxLayout(self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(2)
        self._plots: tuple[Any, ...] = ()
        self._palette: Palette | None = None
        self._loss: list[tuple[float, float]] = []
        self._dice: dict[int, list[tuple[float, float]]] = {}
        self._mean: list[tuple[float, float]] = []
        self._items: dict[Any, Any] = {}
        self.legend = QLabel("thick: mean Dice; thin: classes, in their colours")
        self.legend.setWordWrap(True)
        self.legend.hide()
        self._box.addWidget(self.legend)
        self.hide()

    @property
    def points(self) -> int:
        """Number of points of the loss curve."""
        return len(self._loss)

    def clear(self) -> None:
        """Remove all points."""
        self._loss, self._dice, self._mean = [], {}, []
        for item in self._items.values():
            item.setData([], [])
        for part in (*self._plots[1:], self.legend):
            part.hide()
        self.hide()

    def add_loss(self, seconds: float, loss: float) -> None:
        """Add a point; every other one is dropped beyond `MOST_POINTS`. A clock that went back means a new run."""
        if self._loss and seconds == self._loss[-1][0]:
            return
        if self._loss and seconds < self._loss[-1][0]:
            self.clear()
        self._loss.append((seconds, loss))
        if len(self._loss) > MOST_POINTS:
            self._loss = self._loss[::2]
        loss_plot, _ = self._ready()
        self._draw("loss", loss_plot, self._loss, self._text_colour(), 1.5)

    def add_dice(
        self, seconds: float, dice: Mapping[int, float], mean: float | None, classes: Sequence[ClassDef]
    ) -> None:
        """Held-out Dice by class id, and their mean."""
        _, plot = self._ready()
        plot.show()
        self.legend.show()
        for c in classes:
            if c.id in dice:
                points = self._dice.setdefault(c.id, [])
                points.append((seconds, dice[c.id]))
                self._draw(c.id, plot, points, c.colour, 1.5)
        if mean is not None:
            self._mean.append((seconds, mean))
            self._draw("mean", plot, self._mean, self._text_colour(), 2.5)

    def show_curves(self, losses: Sequence[tuple[float, float]], scores: Sequence[tuple[float, float]]) -> None:
        """Show a run that has ended: (seconds, loss) and (seconds, mean held-out Dice)."""
        self.clear()
        self._loss, self._mean = list(losses), list(scores)
        if losses:
            self._draw("loss", self._ready()[0], self._loss, self._text_colour(), 1.5)
        if scores:
            plot = self._ready()[1]
            plot.show()
            self._draw("mean", plot, self._mean, self._text_colour(), 2.5)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Let the wheel scroll the panel instead of zooming the plot."""
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        event.ignore()
        return True

    def paint(self, palette: Palette) -> None:
        """Apply the colours of a theme."""
        self._palette = palette
        for plot in self._plots:
            self._colour(plot)
        for name in ("loss", "mean"):
            if name in self._items:
                self._items[name].setPen(self._pen(palette.text, 1.5 if name == "loss" else 2.5))

    def _text_colour(self) -> str:
        return "#808080" if self._palette is None else self._palette.text

    def prepare(self) -> None:
        """Create the plots, after `import_plots`, so that the first point does not block the window."""
        if not self._plots:
            import pyqtgraph

            made = []
            for title, tip in (
                ("loss", "Balanced loss of each training step; it is noisy, but should decrease"),
                (
                    "Dice",
                    "Agreement with the held-out strokes: thick line the mean, thin lines the classes; 1 is perfect",
                ),
            ):
                plot = pyqtgraph.PlotWidget(enableMenu=False)  # its menu takes longer to make than the rest
                plot.setFixedHeight(HEIGHT)
                plot.setToolTip(plain_tip(tip))
                plot.setMouseEnabled(x=False, y=False)
                plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
                for part in (plot, plot.viewport()):
                    part.installEventFilter(self)
                plot.hideButtons()
                plot.setLabel("left", title)
                plot.getAxis("left").setWidth(LEFT_AXIS)
                plot.getAxis("left").enableAutoSIPrefix(False)
                plot.getAxis("bottom").setStyle(showValues=True)
                self._box.insertWidget(0, plot)  # Dice, once there is one, over the axis that both share
                made.append(plot)
            made[1].setYRange(0, 1, padding=0.1)
            made[1].setXLink(made[0])
            made[0].setLabel("bottom", "seconds of training")
            made[0].plotItem.setContentsMargins(0, 0, 0, DESCENDERS)
            made[0].setFixedHeight(HEIGHT + LABEL_HEIGHT)
            made[1].hide()  # until there is a score
            self._plots = tuple(made)
            for plot in made:
                self._colour(plot)

    def _ready(self) -> tuple[Any, ...]:
        self.prepare()
        self.show()
        return self._plots

    def _colour(self, plot: Any) -> None:
        if self._palette is None:
            return
        plot.setBackground(self._palette.background)
        for side in ("left", "bottom"):
            plot.getAxis(side).setPen(self._palette.muted)
            plot.getAxis(side).setTextPen(self._palette.text)

    @staticmethod
    def _pen(colour: str, width: float) -> Any:
        import pyqtgraph

        return pyqtgraph.mkPen(colour, width=width)

    def _draw(self, key: Any, plot: Any, points: list[tuple[float, float]], colour: str, width: float) -> None:
        if key not in self._items:
            self._items[key] = plot.plot(pen=self._pen(colour, width))
        item = self._items[key]
        item.setPen(self._pen(colour, width))
        # scores are rare, and a line of one point is invisible
        dots = {} if key == "loss" else {"symbol": "o", "symbolSize": 5, "symbolBrush": colour, "symbolPen": None}
        item.setData([p[0] for p in points], [p[1] for p in points], **dots)


BAR_HEIGHT = 13
GAP = 4
TITLES = ("labelled", "weight")


class ShareBars(QWidget):
    """Stacked bars in class colours: labelled pixels above, weight in training below; the tooltip has the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._classes: tuple[ClassDef, ...] = ()
        self._rows: tuple[Mapping[int, float], ...] = ({}, {})
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Share of each class")
        self.hide()

    def sizeHint(self) -> QSize:
        return QSize(240, 2 * BAR_HEIGHT + GAP + 2)

    def show_shares(
        self, classes: Sequence[ClassDef], labelled: Mapping[int, float], counted: Mapping[int, float]
    ) -> None:
        """Shares (0..1 by class id) of the labelled pixels and of the loss."""
        self._classes, self._rows = tuple(classes), (dict(labelled), dict(counted))
        self.setAccessibleDescription(self._text())
        self.setVisible(any(labelled.values()))
        self.update()

    def _title_width(self) -> int:
        return 8 + max(int(self.fontMetrics().horizontalAdvance(t)) for t in TITLES)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        left = self._title_width()
        colours = {c.id: QColor(c.colour) for c in self._classes}
        for i, (title, shares) in enumerate(zip(TITLES, self._rows, strict=True)):
            y = 1 + i * (BAR_HEIGHT + GAP)
            painter.setPen(self.palette().text().color())
            painter.drawText(
                QRectF(0, y, left - 6, BAR_HEIGHT), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, title
            )
            width = self.width() - left - 1
            painter.fillRect(QRectF(left, y, width, BAR_HEIGHT), self.palette().button())
            x = float(left)
            for c in self._classes:
                part = width * shares.get(c.id, 0.0)
                painter.fillRect(QRectF(x, y, part, BAR_HEIGHT), colours[c.id])
                x += part
        painter.end()

    def event(self, event: QEvent | None) -> bool:
        """Show the numbers as a tooltip."""
        if event is not None and event.type() == event.Type.ToolTip:
            help_event: QHelpEvent = event
            QToolTip.showText(help_event.globalPos(), self._text(), self)
            return True
        return bool(super().event(event))

    def _text(self) -> str:
        labelled, counted = self._rows
        lines = [
            f"{c.name}: {percent(labelled.get(c.id, 0.0))} of labels, {percent(counted.get(c.id, 0.0))} of the weight"
            for c in self._classes
        ]
        return "\n".join(lines) or "Nothing is labelled yet."
