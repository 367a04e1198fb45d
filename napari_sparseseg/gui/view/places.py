"""Windows of the view: the question for a point of the slide, and the pictures beside the slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_sparseseg.gui.view.scale import point_of
from napari_sparseseg.gui.widgets import row

if TYPE_CHECKING:
    from collections.abc import Mapping

PICTURE_PX = 520
"""Longer side of a picture on the screen."""
PIXELS, MICROMETRES = "px", "µm"


class PointDialog(QDialog):
    """Asks for a point as "x, y" in pixels or micrometres, as QuPath gives it.

    Parameters
    ----------
    parent
        Window to stand over.
    at
        Level-0 (y, x) to begin with.
    shape
        Of the slide, (H, W).
    mpp
        Of the slide, (y, x); None: only pixels can be given.
    """

    def __init__(
        self, parent: QWidget, at: tuple[float, float], shape: tuple[int, int], mpp: tuple[float, float] | None
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Go to coordinates")
        self._shape, self._mpp = shape, mpp or (1.0, 1.0)
        self.text = QLineEdit()
        self.text.setToolTip("Two numbers: from the left edge, and from the top edge")
        self.unit = QComboBox()
        self.unit.addItems([PIXELS] if mpp is None else [PIXELS, MICROMETRES])
        self.unit.setAccessibleName("Unit")
        self.size = QLabel()
        self.size.setWordWrap(True)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.go = buttons.addButton("Go", QDialogButtonBox.ButtonRole.AcceptRole)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        form = QFormLayout()
        form.addRow("x, y", row(self.text, self.unit, stretch=0))
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.size)
        layout.addWidget(buttons)
        self._show_point(at)
        self.unit.currentIndexChanged.connect(self._on_unit)
        self.text.textChanged.connect(self._check)
        self._check()

    def ask(self) -> tuple[float, float] | None:
        """Level-0 (y, x), or None when cancelled."""
        self.text.selectAll()
        self.text.setFocus()
        agreed = self.exec()
        point = self.point
        self.deleteLater()
        return point if agreed else None

    @property
    def point(self) -> tuple[float, float] | None:
        """Level-0 (y, x) of what is typed; None where that is no point of the slide."""
        typed = point_of(self.text.text())
        if typed is None:
            return None
        y, x = (value / unit for value, unit in zip(typed, self._units, strict=True))
        return (y, x) if 0 <= y <= self._shape[0] and 0 <= x <= self._shape[1] else None

    @property
    def _units(self) -> tuple[float, float]:
        """Of the typed unit per level-0 pixel, (y, x)."""
        return self._mpp if self.unit.currentText() == MICROMETRES else (1.0, 1.0)

    def _show_point(self, at: tuple[float, float]) -> None:
        y, x = (value * unit for value, unit in zip(at, self._units, strict=True))
        self.text.setText(f"{x:.0f}, {y:.0f}")

    def _on_unit(self) -> None:
        typed, before = point_of(self.text.text()), (1.0, 1.0)
        if typed is not None:
            before = (1.0, 1.0) if self.unit.currentText() == MICROMETRES else self._mpp
            self._show_point((typed[0] / before[0], typed[1] / before[1]))
        self._check()

    def _check(self) -> None:
        (height, width), (y, x) = self._shape, self._units
        self.go.setEnabled(self.point is not None)
        self.size.setText(f"Two numbers within 0, 0 and {width * x:.0f}, {height * y:.0f} {self.unit.currentText()}.")


class Pictures(QDialog):
    """Label, macro and thumbnail of a slide, in a window of its own.

    Parameters
    ----------
    parent
        Window to stand over.
    title
        Name of the slide.
    pictures
        By name, uint8 (h, w, 3).
    """

    def __init__(self, parent: QWidget, title: str, pictures: Mapping[str, np.ndarray]) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        inner = QWidget()
        column = QVBoxLayout(inner)
        for name, pixels in pictures.items():
            h, w, _ = pixels.shape
            image = QImage(np.ascontiguousarray(pixels).tobytes(), w, h, 3 * w, QImage.Format.Format_RGB888)
            shown = QLabel()
            pixmap = QPixmap.fromImage(image)
            most = min(1.0, PICTURE_PX / max(w, h))
            size = QSize(round(w * most), round(h * most))
            shown.setPixmap(pixmap.scaled(size, transformMode=Qt.TransformationMode.SmoothTransformation))
            shown.setAccessibleName(name)
            column.addWidget(QLabel(name.capitalize()))
            column.addWidget(shown)
        scroll = QScrollArea()
        scroll.setWidget(inner)
        layout = QVBoxLayout(self)
        layout.addWidget(scroll)
        size = inner.sizeHint()
        self.resize(min(size.width() + 60, 900), min(size.height() + 60, 800))
