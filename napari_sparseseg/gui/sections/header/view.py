"""The header above the sections: state, next step, errors, and the offer to recover annotations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QGuiApplication, QPainter, QPixmap
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QMenu, QPlainTextEdit, QToolButton, QVBoxLayout, QWidget

from napari_sparseseg.gui.widgets import SPACING, ElidedLabel, button, plain_tip, row
from napari_sparseseg.session.binding import RELINK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.sections.train.controller import LabelStatistics
    from napari_sparseseg.gui.widgets import Palette
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.session.status import Status

DETAILS_HEIGHT = 110
DOT = 12


class Banner(QFrame):
    """A message with buttons that stays until it is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("SparseSegBanner")
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextFormat(Qt.TextFormat.PlainText)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.buttons = QHBoxLayout()
        self.buttons.setSpacing(SPACING)
        self.buttons.addStretch(1)
        self.layout_ = QVBoxLayout(self)
        self.layout_.setContentsMargins(8, 6, 8, 6)
        self.layout_.addWidget(self.text)
        self.layout_.addLayout(self.buttons)
        self.hide()

    def colour(self, edge: str, background: str) -> None:
        """Frame it in `edge`."""
        self.setStyleSheet(
            f"#SparseSegBanner {{ border: 1px solid {edge}; border-left: 4px solid {edge}; border-radius: 3px;"
            f" background: {background}; }} #SparseSegBanner QLabel {{ background: transparent; }}"
        )


class ErrorBanner(Banner):
    """What failed and what to do; the traceback on request, to copy into a report."""

    def __init__(self) -> None:
        super().__init__()
        self.details = QPlainTextEdit()
        self.details.setReadOnly(True)
        self.details.setFixedHeight(DETAILS_HEIGHT)
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.hide()
        self.layout_.insertWidget(1, self.details)
        self.find = button("Find it…", "Open the slide where it is now; its annotations come back", self.hide)
        self.more = button("Details", "The technical details; they contain no image data", self._on_details)
        self.copy = button("Copy", "Copy the message and the details, for a bug report", self._on_copy)
        self.dismiss = button("Dismiss", "Hide this message", self.hide)
        for made in (self.find, self.more, self.copy, self.dismiss):
            self.buttons.addWidget(made)

    def report(self, message: str, details: str) -> None:
        """Show a failure; where it is that a slide was not found, with a button to find it."""
        self.text.setText(sentence(message))
        self.details.setPlainText(details)
        self.details.hide()
        self.more.setVisible(bool(details))
        self.find.setVisible(RELINK in message)
        self.show()

    def _on_details(self) -> None:
        self.details.setVisible(not self.details.isVisible())

    def _on_copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(f"{self.text.text()}\n\n{self.details.toPlainText()}")


class RecoveryBanner(Banner):
    """Offers annotations of an earlier session that was not saved; they are loaded only on request.

    Attributes
    ----------
    restore_requested
        Signal (): the user wants to restore them.
    """

    restore_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.offered: tuple[SlideEntry, Path]
        self.restore = button(
            "Restore", "Restore these annotations; the recovered file stays on disk", self._on_restore
        )
        self.later = button("Not now", "They stay on disk and are offered again next time", self.hide)
        self.buttons.addWidget(self.restore)
        self.buttons.addWidget(self.later)

    def offer_scribbles(self, name: str, entry: SlideEntry, folder: Path) -> None:
        """Offer the annotations that an unsaved session left in `folder`."""
        self.offered = (entry, folder)
        when = time.strftime("%d %b %Y, %H:%M", time.localtime(folder.stat().st_mtime))
        self.text.setText(f"Annotations on {name} from {when} were not saved as a project. Restore them?")
        self.show()

    def _on_restore(self) -> None:
        self.hide()
        self.restore_requested.emit()


def sentence(message: str) -> str:
    """With a capital letter, unless it begins with a file name."""
    first = message.partition(" ")[0]
    return message[:1].upper() + message[1:] if first.isalpha() else message


def dot(colour: str) -> QPixmap:
    """A small round light."""
    pixmap = QPixmap(2 * DOT, 2 * DOT)
    pixmap.setDevicePixelRatio(2.0)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(colour))
    painter.drawEllipse(1, 1, DOT - 2, DOT - 2)
    painter.end()
    return pixmap


class Header(QWidget):
    """State, saved indicator, menu, next step, banners."""

    def __init__(self) -> None:
        super().__init__()
        self.dot = QLabel()
        self.state = ElidedLabel("No slide")
        self.saved = QLabel()
        self.menu_button = QToolButton()
        self.menu_button.setText("☰")
        self.menu_button.setToolTip("Save and open projects, export a script, help")
        self.menu_button.setAccessibleName("Menu")
        self.menu_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.menu_button.setStyleSheet("QToolButton::menu-indicator { image: none; }")
        self.menu = QMenu(self)
        self.menu.setToolTipsVisible(True)
        self.menu_button.setMenu(self.menu)
        self.next_step = QLabel()
        self.next_step.setWordWrap(True)
        self.next_step.setTextFormat(Qt.TextFormat.PlainText)
        self.error, self.recovery = ErrorBanner(), RecoveryBanner()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 0)
        layout.setSpacing(SPACING)
        layout.addLayout(row(self.dot, self.state, self.saved, self.menu_button, stretch=1))
        layout.addWidget(self.next_step)
        layout.addWidget(self.error)
        layout.addWidget(self.recovery)
        self._palette: Palette | None = None

    def add_action(self, text: str, tip: str, triggered: Callable[[], object]) -> None:
        """Add an entry to the menu."""
        action = self.menu.addAction(text)
        action.setToolTip(plain_tip(tip))
        action.triggered.connect(lambda _=False: triggered())

    def paint(self, palette: Palette) -> None:
        """Apply the colours of a theme."""
        self._palette = palette
        self.error.colour(palette.error, palette.background)
        self.recovery.colour(palette.warning, palette.background)
        self.next_step.setStyleSheet(f"color: {palette.text}; padding: 2px;")
        self.saved.setStyleSheet(f"color: {palette.muted};")

    def show_state(self, text: str, *, active: bool, failed: bool) -> None:
        """Show the state as text, and as the colour of the dot."""
        self.state.setText(text)
        if self._palette is not None:
            p = self._palette
            self.dot.setPixmap(dot(p.error if failed else p.accent if active else p.muted))
        self.dot.setToolTip("Failed" if failed else "Working" if active else "Idle")

    def show_saved(self, text: str, tip: str) -> None:
        """Show whether the annotations are on disk."""
        self.saved.setText(text)
        self.saved.setToolTip(plain_tip(tip))

    def show_next_step(self, text: str) -> None:
        """Show what the user can do next; nothing when the text is empty."""
        self.next_step.setText(text)
        self.next_step.setVisible(bool(text))


STATES = {
    "idle": "Ready",
    "training": "Training",
    "paused": "Paused",
    "predicting": "Predicting the slide",
    "failed": "Failed",
}
FEW_STROKES = 4


def state_line(status: Status, jobs: Sequence[str], *, has_slide: bool) -> str:
    """The line at the top of the panel."""
    if status.state == "predicting" and status.progress is not None:
        return f"Predicting the slide, {status.progress:.0%}".replace("%", " %")
    if jobs:
        return f"{jobs[0]}…"
    if not has_slide and status.state == "idle":
        return "No slide open"
    if status.state == "training" and not status.model_version:
        return "Preparing the network"
    return STATES[status.state]


def next_step(
    status: Status,
    classes: Sequence[ClassDef],
    statistics: LabelStatistics,
    *,
    has_slide: bool,
    live: bool,
    unlearned: bool = False,
    known: Sequence[ClassDef] = (),
) -> str:
    """What the user can do next, one sentence or nothing.

    `known` are the classes of the model; `unlearned` strokes were drawn on a model that was only loaded.
    """
    if not has_slide:
        return "1 of 3: open a slide, drop one on the viewer, or try the sample."
    if status.state in ("failed", "predicting"):
        return ""
    if len(classes) < 2:
        return "Add a second class: training needs at least two."
    if status.model_version:
        return _with_model(status, classes, statistics, known, live=live, unlearned=unlearned)
    return _first_steps(classes, statistics.labelled, waits=status.state in ("training", "paused"))


def _first_steps(classes: Sequence[ClassDef], labelled: Sequence[int], *, waits: bool) -> str:
    if not labelled:
        return "2 of 3: choose a class below and draw a few strokes on the slide. Hold Space to pan."
    if len(labelled) < 2:
        names = {c.id: c.name for c in classes}
        other = next((c.name for c in classes if c.id not in labelled), "another class")
        return f"2 of 3: so far only {names.get(labelled[0], 'one class')} is labelled; draw some {other} too."
    return "" if waits else "3 of 3: press Train. The prediction appears within seconds; you can keep drawing."


def _with_model(
    status: Status,
    classes: Sequence[ClassDef],
    statistics: LabelStatistics,
    known: Sequence[ClassDef],
    *,
    live: bool,
    unlearned: bool,
) -> str:
    differs = _disagreement(classes, statistics.labelled, known) if status.state == "idle" else ""
    if differs:
        return differs
    if unlearned and len(statistics.labelled) > 1:
        return "The new strokes are not learned yet: press Train to continue training."
    if not live:
        return "Live prediction is off: switch it on under Predict to see the result on the slide."
    if not statistics.labelled:
        return (
            "The model predicts the visible region. To train it further, draw strokes of two classes and press Train."
        )
    thin = [c.name for c in classes if statistics.strokes.get(c.id, 0) == 0]
    if thin:
        return f"{thin[0]} has no strokes yet: draw some, or remove the class."
    if status.state == "training" and sum(statistics.strokes.values()) < FEW_STROKES * len(classes):
        return "Draw where the prediction is wrong: every stroke is learned when you release the mouse."
    return ""


def _disagreement(classes: Sequence[ClassDef], labelled: Sequence[int], known: Sequence[ClassDef]) -> str:
    """How the classes of a loaded model differ from the table, and what to do."""
    ids, table = {c.id for c in known}, {c.id for c in classes}
    new = next((c.name for c in classes if c.id in labelled and c.id not in ids), None)
    if new is not None:
        return f"The model does not know {new} yet: press Train."
    gone = next((c.name for c in known if c.id not in table), None)
    return "" if gone is None else f"The model still predicts {gone}, which was removed. Press Train to retrain it."
