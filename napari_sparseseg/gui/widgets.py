"""Widgets that all sections use, and the colours of napari's theme."""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QObject, QPoint, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QMenu,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import napari
    from qtpy.QtGui import QPaintEvent
    from qtpy.QtWidgets import QTableView, QTableWidget

SPACING = 6
ROW_HEIGHT, HEADING_HEIGHT = 24, 24
TIP_WIDTH = 64
"""Characters."""


class Section(QWidget):
    """A section with a heading that collapses it; a summary is shown beside the heading while it is collapsed.

    Parameters
    ----------
    title
        Of the heading.
    body
        What is folded.
    tip
        Why one would open it.
    """

    toggled = Signal(bool)

    def __init__(self, title: str, body: QWidget, *, tip: str = "", opened: bool = True) -> None:
        super().__init__()
        self.body = body
        self.heading = QToolButton()
        self.heading.setText(title)
        self.heading.setCheckable(True)
        self.heading.setChecked(opened)
        self.heading.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.heading.setStyleSheet("QToolButton { background: transparent; font-weight: bold; border: none; }")
        self.heading.setToolTip(tip)
        self.heading.setAccessibleName(title)
        self.heading.toggled.connect(self._on_toggled)
        self.summary = ElidedLabel(align=Qt.AlignmentFlag.AlignRight)
        top = QHBoxLayout()
        top.setContentsMargins(0, 0, 0, 0)
        top.addWidget(self.heading, 0, Qt.AlignmentFlag.AlignLeft)
        top.addWidget(self.summary, 1)
        line = QFrame()
        line.setFrameShape(QFrame.Shape.HLine)
        line.setObjectName("QtCustomTitleBarLine")  # napari's style sheet gives it the colour of its own lines
        line.setFixedHeight(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACING)
        layout.addWidget(line)
        layout.addLayout(top)
        layout.addWidget(body)
        self._on_toggled(opened)

    def _on_toggled(self, opened: bool) -> None:
        self.heading.setArrowType(Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow)
        self.body.setVisible(opened)
        self.summary.setVisible(not opened)
        self.toggled.emit(opened)


class ElidedLabel(QElidingLabel):
    """One line that ends in an ellipsis where it does not fit; the whole text is the tooltip."""

    def __init__(self, text: str = "", *, align: Qt.AlignmentFlag = Qt.AlignmentFlag.AlignLeft) -> None:
        super().__init__()
        self.setElideMode(Qt.TextElideMode.ElideMiddle)
        self.setAlignment(align | Qt.AlignmentFlag.AlignVCenter)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setText(text)

    def setText(self, text: str) -> None:
        super().setText(text)
        self.setToolTip(plain_tip(text))


class NameBox(QComboBox):
    """A choice of names of any length: a long one ends in an ellipsis and is in the tooltip.

    Parameters
    ----------
    tip
        Why one would choose.
    """

    def __init__(self, tip: str) -> None:
        super().__init__()
        self._tip = tip
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        self._show_tip()
        self.currentTextChanged.connect(self._show_tip)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        field = QStyle.SubControl.SC_ComboBoxEditField
        room = self.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, field, self).width() - 4
        option.currentText = self.fontMetrics().elidedText(option.currentText, Qt.TextElideMode.ElideMiddle, room)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def _show_tip(self) -> None:
        name = self.currentText()
        self.setToolTip(plain_tip(f"{name}\n{self._tip}" if name else self._tip))


class WheelGuard(QObject):
    """Lets the wheel scroll the panel; it changes a value only in the control that has the focus."""

    def __init__(self, inner: QWidget) -> None:
        super().__init__(inner)
        for kind in (QComboBox, QAbstractSpinBox, QSlider):
            for control in inner.findChildren(kind):
                control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # not the wheel
                control.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        if event is None or event.type() != QEvent.Type.Wheel or not isinstance(watched, QWidget):
            return False
        if watched.hasFocus():
            return False
        event.ignore()  # Qt passes it to the scroll area
        return True


class SteadyScroll(QScrollArea):
    """Scrolls to the control that Tab reaches, but stays when a pressed button is disabled and passes its focus on."""

    def __init__(self, inner: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(inner)

    def focusNextPrevChild(self, forward: bool) -> bool:
        bar, left = self.verticalScrollBar(), self.window().focusWidget()
        before = bar.value()
        moved = bool(super().focusNextPrevChild(forward))
        if left is not None and not left.isEnabled():
            bar.setValue(before)
        return moved


def scroll_to(widget: QWidget) -> None:
    """Scroll the panel to a widget."""
    above = _scroll_area(widget)
    if above is not None:
        above.ensureWidgetVisible(widget)


LAYOUT_MS = 500


def hold(widget: QWidget) -> None:
    """Keep a widget under the pointer while what is above it in the panel grows or shrinks now."""
    above = _scroll_area(widget)
    if above is None:
        return
    bar, before = above.verticalScrollBar(), widget.mapTo(above, QPoint()).y()

    def move_back() -> None:  # Qt has laid out what is inside before it changes the range
        bar.setValue(bar.value() + widget.mapTo(above, QPoint()).y() - before)

    timer = QTimer(widget)
    timer.setSingleShot(True)
    timer.timeout.connect(lambda: bar.rangeChanged.disconnect(move_back))
    timer.timeout.connect(timer.deleteLater)
    bar.rangeChanged.connect(move_back)
    timer.start(LAYOUT_MS)


def _scroll_area(widget: QWidget) -> SteadyScroll | None:
    above = widget.parentWidget()
    while above is not None and not isinstance(above, SteadyScroll):
        above = above.parentWidget()
    return above


def plain_tip(text: str) -> str:
    """A tooltip as plain text, wrapped to the width of the panel; idempotent.

    Qt does not wrap plain text, and renders what looks like HTML, loading its images.
    """
    if "<" in text or "&" in text:
        return text if text.startswith("<qt>") else f"<qt>{html.escape(text)}</qt>"
    return "\n".join(textwrap.fill(line, TIP_WIDTH) for line in text.splitlines())


def button(text: str, tip: str, clicked: Callable[[], object]) -> QPushButton:
    """A push button with a tooltip that calls `clicked` without arguments."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.clicked.connect(lambda _=False: clicked())
    return made


def menu_button(text: str, tip: str, entries: Sequence[tuple[str, Callable[[], object]]]) -> QPushButton:
    """A button that opens a menu; `entries` are texts and what to call."""
    made = QPushButton(text)
    made.setToolTip(tip)
    menu = QMenu(made)
    for entry, triggered in entries:
        menu.addAction(entry).triggered.connect(lambda _=False, call=triggered: call())
    made.setMenu(menu)
    return made


def fix_rows(table: QTableView) -> None:
    """Fix the height of rows and heading, whatever the style sheet adds."""
    table.verticalHeader().hide()
    table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
    table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
    table.horizontalHeader().setFixedHeight(HEADING_HEIGHT)


def fit_rows(table: QTableWidget, most: int) -> None:
    """Make a table as high as its rows, at most `most` of them."""
    rows = max(1, table.rowCount())
    table.setFixedHeight(HEADING_HEIGHT + min(rows, most) * ROW_HEIGHT + 4)
    policy = Qt.ScrollBarPolicy.ScrollBarAsNeeded if rows > most else Qt.ScrollBarPolicy.ScrollBarAlwaysOff
    table.setVerticalScrollBarPolicy(policy)


def row(*widgets: QWidget, stretch: int | None = None) -> QHBoxLayout:
    """Widgets side by side; the one with index `stretch` takes the remaining width."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(SPACING)
    for i, widget in enumerate(widgets):
        layout.addWidget(widget, 1 if i == stretch else 0)
    return layout


def column(parent: QWidget) -> QVBoxLayout:
    """The vertical layout of a section's body."""
    layout = QVBoxLayout(parent)
    layout.setContentsMargins(2, 0, 2, 4)
    layout.setSpacing(SPACING)
    return layout


def note(text: str = "") -> QLabel:
    """A line of explanation that wraps."""
    made = QLabel(text)
    made.setWordWrap(True)
    made.setTextFormat(Qt.TextFormat.PlainText)
    made.setProperty("muted", True)
    return made


class Palette(NamedTuple):
    """``#rrggbb`` of the colours that the panel paints itself."""

    background: str
    foreground: str
    text: str
    muted: str
    accent: str
    warning: str
    error: str


def palette(viewer: napari.Viewer) -> Palette:
    """The colours of the current theme of `viewer`."""
    theme = get_theme(viewer.theme)
    background, text = _hex(theme.background), _hex(theme.text)
    return Palette(
        background=background,
        foreground=_hex(theme.foreground),
        text=text,
        muted=mix(text, background, 0.35),
        accent=_hex(theme.current),
        warning=_hex(theme.warning),
        error=mix(_hex(theme.error), text, 0.45),
    )


def panel_sheet(colours: Palette) -> str:
    """The style sheet of our panels."""
    return (
        f'QLabel[muted="true"] {{ color: {colours.muted}; }}'
        f"QHeaderView::section {{ background: {colours.background}; color: {colours.muted}; border: none;"
        f" border-bottom: 1px solid {colours.foreground}; padding: 2px 4px; }}"
        f"QTableView, QPlainTextEdit {{ border: 1px solid {colours.foreground}; border-radius: 2px; }}"
        "QPushButton { padding: 4px 7px; }"
    )


def mix(colour: str, other: str, share: float) -> str:
    """`colour` mixed with a `share` (0..1) of `other`."""
    pairs = zip(_parts(colour), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(colour: object) -> str:
    as_hex = getattr(colour, "as_hex", None)
    text = as_hex("long") if as_hex is not None else str(colour)
    return str(text)[:7]
