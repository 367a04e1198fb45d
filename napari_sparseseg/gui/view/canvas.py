"""Widgets that lie on the canvas: scale bar, overview map, and the bar with magnification and buttons.

They are Qt widgets above napari's canvas rather than overlays of its scene: napari's own scale bar takes its unit from
the layers, whose world here is level-0 pixels. See D97.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QPointF, QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QImage, QPainter, QPen
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QMenu, QPushButton, QToolButton, QWidget

from napari_sparseseg.gui.view.scale import Bar, magnification_text
from napari_sparseseg.gui.widgets import plain_tip

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from qtpy.QtGui import QMouseEvent, QPaintEvent

MARGIN = 10
"""Between these widgets and the edge of the canvas."""
DARK, INK, SEEN = QColor(16, 18, 22, 190), QColor("#ffffff"), QColor("#ffd400")
FONT_PX = 12
PADDING, THICKNESS, TICK = 8, 3.0, 8.0
LEAST_BOX = 5.0
"""A smaller box of the view on the map is drawn as a cross."""
OBJECTIVES = (5, 10, 20, 40)
ROOMY_PX = 420
"""Width of a canvas with room for the whole bar."""
NOTE_PX, READ_MS, READ_CHARACTER_MS = 460, 3000, 60
STYLE = """
#SparseSegNote { background: rgba(16, 18, 22, 215); border-radius: 4px; color: white; font-size: 13px;
  padding: 6px 10px; }
#SparseSegViewBar { background: rgba(16, 18, 22, 190); border-radius: 4px; }
#SparseSegViewBar QLabel { background: transparent; color: white; font-size: 12px; padding: 0 4px; }
#SparseSegViewBar QPushButton, #SparseSegViewBar QToolButton { background: rgba(255, 255, 255, 34); color: white;
  border: none; border-radius: 3px; padding: 3px 6px; font-size: 12px; min-width: 20px; }
#SparseSegViewBar QPushButton:hover, #SparseSegViewBar QToolButton:hover { background: rgba(255, 255, 255, 90); }
#SparseSegViewBar QPushButton:disabled { color: rgba(255, 255, 255, 110); background: rgba(255, 255, 255, 16); }
#SparseSegViewBar QToolButton::menu-indicator { image: none; }
"""


def bar_size(bar: Bar, scale: float = 1.0) -> QSize:
    """Size of a scale bar with its text and box."""
    width = max(bar.pixels * scale, QFontMetricsF(bar_font(scale)).horizontalAdvance(bar.text))
    return QSize(round(width + 2 * PADDING * scale), round((2 * PADDING + FONT_PX + TICK + 4) * scale))


def bar_font(scale: float = 1.0) -> QFont:
    """The font of what is drawn on the picture."""
    font = QFont()
    font.setPixelSize(round(FONT_PX * scale))
    font.setBold(True)
    return font


def draw_bar(painter: QPainter, bar: Bar, corner: QPointF, scale: float = 1.0) -> None:
    """Draw a scale bar in a dark box, legible on any slide, with its upper left corner at `corner`.

    Parameters
    ----------
    scale
        Pixels of the picture per screen pixel.
    """
    box = QRectF(corner, bar_size(bar, scale).toSizeF())
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(DARK)
    painter.drawRoundedRect(box, 4 * scale, 4 * scale)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
    painter.setPen(INK)
    painter.setFont(bar_font(scale))
    inner = box.adjusted(0, PADDING * scale, 0, -PADDING * scale)
    painter.drawText(inner, int(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop), bar.text)
    length, thick, tick = bar.pixels * scale, THICKNESS * scale, TICK * scale
    left, bottom = box.center().x() - length / 2, inner.bottom()
    painter.fillRect(QRectF(left, bottom - (tick + thick) / 2, length, thick), INK)
    for x in (left, left + length - thick / 2):
        painter.fillRect(QRectF(x, bottom - tick, thick / 2, tick), INK)


class ScaleBar(QWidget):
    """The scale bar; the mouse goes through it."""

    def __init__(self, canvas: QWidget) -> None:
        super().__init__(canvas)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAccessibleName("Scale bar")
        self.bar = Bar(1.0, "")
        self.hide()

    def show_bar(self, bar: Bar) -> None:
        """Show another length; the widget keeps its lower left corner."""
        if bar != self.bar:
            self.bar = bar
            bottom = self.geometry().bottom() + 1
            self.resize(bar_size(bar))
            self.move(self.x(), bottom - self.height())
            self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        draw_bar(painter, self.bar, QPointF(0, 0))
        painter.end()


class OverviewMap(QWidget):
    """The whole slide, small, with the box of the view; a click or drag goes there.

    Attributes
    ----------
    chosen
        Signal (y, x): go there, as a share 0..1 of the slide.
    """

    chosen = Signal(float, float)

    def __init__(self, canvas: QWidget) -> None:
        super().__init__(canvas)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName("Overview map")
        self.setToolTip("The whole slide: click or drag to go there")
        self._image: QImage | None = None
        self.view_box = QRectF()
        """Of the view on the map, in its pixels."""
        self._view = (0.0, 0.0, 1.0, 1.0)
        self.hide()

    def show_slide(self, pixels: np.ndarray | None) -> None:
        """Show a thumbnail, uint8 (h, w, 3); None: none yet."""
        self._image = None
        if pixels is not None:
            h, w, _ = pixels.shape
            self._image = QImage(pixels.tobytes(), w, h, 3 * w, QImage.Format.Format_RGB888).copy()
            self.resize(w + 2, h + 2)
        self._place_box()

    @property
    def has_slide(self) -> bool:
        """Whether there is a thumbnail to show."""
        return self._image is not None

    def show_view(self, y: float, x: float, height: float, width: float) -> None:
        """Show what is in view, as shares of the slide; it may reach beyond."""
        self._view = (y, x, height, width)
        self._place_box()

    def _place_box(self) -> None:
        y, x, height, width = self._view
        w, h = self.width() - 2, self.height() - 2
        self.view_box = QRectF(1 + x * w, 1 + y * h, width * w, height * h)
        self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), DARK)
        if self._image is not None:
            painter.drawImage(1, 1, self._image)
        painter.setPen(QPen(SEEN, 2))
        box = self.view_box
        if min(box.width(), box.height()) < LEAST_BOX:
            c = box.center()
            painter.drawLine(QPointF(c.x() - 6, c.y()), QPointF(c.x() + 6, c.y()))
            painter.drawLine(QPointF(c.x(), c.y() - 6), QPointF(c.x(), c.y() + 6))
        else:
            painter.drawRect(box.intersected(QRectF(self.rect()).adjusted(1, 1, -1, -1)))
        painter.end()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        self._go(event)

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:
        self._go(event)

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:
        """Keep it from the canvas, which would end a stroke that was never begun."""

    def _go(self, event: QMouseEvent | None) -> None:
        if event is not None and event.buttons() & Qt.MouseButton.LeftButton:
            at = event.position()
            shares = (at.y() - 1) / (self.height() - 2), (at.x() - 1) / (self.width() - 2)
            self.chosen.emit(*(min(1.0, max(0.0, share)) for share in shares))


class Note(QLabel):
    """A sentence at the upper left, for as long as it takes to read; the mouse goes through it."""

    def __init__(self, canvas: QWidget) -> None:
        super().__init__(canvas)
        self.setObjectName("SparseSegNote")
        self.setStyleSheet(STYLE)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.hide)
        self.hide()

    def show_text(self, text: str, room: int) -> None:
        """Show a sentence, at most `room` pixels wide."""
        self.setText(text[:1].upper() + text[1:].replace("/", "/\u200b"))  # a path may be broken there
        whole = self.fontMetrics().horizontalAdvance(text) + 4 * PADDING
        self.setFixedWidth(min(whole, room, NOTE_PX))
        self.setFixedHeight(self.heightForWidth(self.width()))
        self.show()
        self.raise_()
        self._timer.start(READ_MS + READ_CHARACTER_MS * len(text))


class ViewBar(QFrame):
    """Brush size, magnification, its buttons, and a menu; at the lower right of the canvas.

    Attributes
    ----------
    objective_chosen
        Signal (float): show the slide as large as this objective does.
    fit_requested
        Signal (): show the whole slide.
    """

    objective_chosen = Signal(float)
    fit_requested = Signal()

    def __init__(self, canvas: QWidget) -> None:
        super().__init__(canvas)
        self.setObjectName("SparseSegViewBar")
        self.setStyleSheet(STYLE)
        self.setCursor(Qt.CursorShape.ArrowCursor)
        self.brush, self.magnification = QLabel(), QLabel()
        self.brush.setToolTip("Diameter of the brush on the slide; [ and ] change it")
        self.objectives = {n: self._button(f"{n}×", partial(self.objective_chosen.emit, float(n))) for n in OBJECTIVES}
        for n, made in self.objectives.items():
            made.setToolTip(
                f"Show the slide as an objective of {n}× does: {10 / n:g} µm per screen pixel. "
                "Needs the resolution of the slide."
            )
        self.fit = self._button("Fit", self.fit_requested.emit)
        self.fit.setToolTip("Show the whole slide")
        self.menu_button = QToolButton()
        self.menu_button.setText("⋯")
        self.menu_button.setToolTip("Go to coordinates, snapshot, legend, overview map, label of the slide")
        self.menu_button.setAccessibleName("View menu")
        self.menu_button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.menu_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.menu = QMenu(self)
        self.menu.setToolTipsVisible(True)
        self.menu_button.setMenu(self.menu)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(3)
        for widget in (self.brush, self.magnification, *self.objectives.values(), self.fit, self.menu_button):
            layout.addWidget(widget)
        self.hide()

    def _button(self, text: str, clicked: Callable[[], object]) -> QPushButton:
        made = QPushButton(text)
        made.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # keys go on meaning what they mean over the slide
        made.clicked.connect(lambda _=False: clicked())
        return made

    def show_zoom(self, zoom: float, objective: float | None) -> None:
        """Show the magnification; where the slide's resolution is unknown, how much it is enlarged."""
        if objective is None:
            text, tip = f"{100 * zoom:.3g} %", "Screen pixels per pixel of the slide, whose resolution is unknown"
        else:
            text = magnification_text(objective)
            tip = f"As an objective of this power: 10 / (µm per screen pixel); here {10 / objective:.3g} µm"
        self.magnification.setText(text)
        self.magnification.setToolTip(plain_tip(tip))
        for made in self.objectives.values():
            made.setEnabled(objective is not None)

    def show_brush(self, text: str) -> None:
        """Show the size of the brush; nothing while another tool is chosen."""
        self.brush.setText(text)

    def fit_into(self, width: int) -> None:
        """Leave out what a narrow canvas has no room for; the keys and the command palette have it all."""
        self.brush.setVisible(bool(self.brush.text()) and width >= ROOMY_PX / 2)
        for made in self.objectives.values():
            made.setVisible(width >= ROOMY_PX)
        self.layout().activate()
        self.adjustSize()
