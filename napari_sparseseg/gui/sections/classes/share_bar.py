"""Two bars, one above the other: how the labels are distributed, and how much each class counts in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_sparseseg.gui.sections.classes.table import percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qtpy.QtCore import QEvent
    from qtpy.QtGui import QHelpEvent, QPaintEvent

    from napari_sparseseg.config import ClassDef

BAR_HEIGHT = 13
GAP = 4
TITLES = ("labelled", "counts as")


class ShareBars(QWidget):
    """Stacked bars in class colours; hovering says the numbers."""

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
        """A tooltip with the numbers."""
        if event is not None and event.type() == event.Type.ToolTip:
            help_event: QHelpEvent = event
            QToolTip.showText(help_event.globalPos(), self._text(), self)
            return True
        return bool(super().event(event))

    def _text(self) -> str:
        labelled, counted = self._rows
        lines = [
            f"{c.name}: {percent(labelled.get(c.id, 0.0))} of the labels, {percent(counted.get(c.id, 0.0))} of the loss"
            for c in self._classes
        ]
        return "\n".join(lines) or "Nothing is labelled yet."
