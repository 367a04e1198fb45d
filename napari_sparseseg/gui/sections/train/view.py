"""Train: one big button, what the balancing does, how it goes."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QFormLayout, QPlainTextEdit, QProgressBar, QSpinBox, QWidget

from napari_sparseseg.config import DEFAULT_ENCODER, TrainConfig
from napari_sparseseg.gui.sections.header.view import sentence
from napari_sparseseg.gui.sections.train.charts import Curves, ShareBars
from napari_sparseseg.gui.widgets import SPACING, ElidedLabel, Section, button, column, note, plain_tip, row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.config import Architecture, ClassDef
    from napari_sparseseg.gui.sections.train.controller import LabelStatistics
    from napari_sparseseg.session.status import Status

BALANCING = {
    "instance": ("By patch (instance)", "Every patch counts the same, and in it every class: small strokes are heard."),
    "mini-batch": ("By batch (mini-batch)", "Every class counts the same over a whole batch, however few its pixels."),
    "none": ("None", "Every labelled pixel counts the same: large strokes drown small ones."),
}
MEASURED = {
    "instance": "In our study the best where a class is rare and part of it is labelled densely, else as good as any",
    "mini-batch": "In our study the best for a network from scratch and several classes, else behind 'by patch'",
    "none": "In our study as good as any for classes of like size, but not from scratch; may never find a rare class",
}
"""What `tests.benchmarks.study` found, said where the choice is made."""
BIG_BUTTON = 36
LOG_HEIGHT = 72
LOG_LINES = 500
PROGRESS_STEPS = 1000


class TrainPanel(QWidget):
    """The body of the section.

    Attributes
    ----------
    train_requested, pause_requested, resume_requested, stop_requested
        Signals ().
    """

    train_requested = Signal()
    pause_requested = Signal()
    resume_requested = Signal()
    stop_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._state, self._last_message = "idle", ""
        self._statistics: LabelStatistics | None = None
        self._classes: tuple[ClassDef, ...] = ()
        self._rate: tuple[float, int, float] = (0.0, 0, 0.0)
        self.balancing = QComboBox()
        for key, (text, _) in BALANCING.items():
            self.balancing.addItem(text, key)
        self.balancing.currentIndexChanged.connect(lambda _: self._show_balancing())
        self.explanation = note()
        self.bars = ShareBars()
        self.train = button("Train", "Learn from all strokes; goes on while you draw and look around", self._on_train)
        self.train.setFixedHeight(BIG_BUTTON)
        self.train.setAccessibleName("Train")
        self.stop = button(
            "Stop", "End training and write the model to disk; Train goes on from there", self.stop_requested.emit
        )
        self.stop.setFixedHeight(BIG_BUTTON)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(6)
        self.progress.setRange(0, PROGRESS_STEPS)
        self.numbers = ElidedLabel()
        self.settings = TrainSettings()
        self.more = Section(
            "More",
            self.settings,
            tip="Resolution, network, device, time: for finer detail or a longer run; the defaults are good",
            opened=False,
        )
        self.curves = Curves()
        self.scores = note()
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LOG_LINES)
        self.log.setFixedHeight(LOG_HEIGHT)
        self.log.setAccessibleName("Log")
        self.log.setToolTip("What was done and why, newest last, for when a result surprises you")
        self.log.hide()
        layout = column(self)
        layout.addLayout(row(self.train, self.stop, stretch=0))
        for widget in (self.progress, self.numbers, self.balancing, self.explanation, self.bars, self.curves):
            layout.addWidget(widget)
        for widget in (self.scores, self.log, self.more):
            layout.addWidget(widget)
        self._show_balancing()
        self.progress.hide()
        self.numbers.hide()
        self.scores.hide()

    def config(self, base: TrainConfig) -> TrainConfig:
        """`base` with what is chosen here."""
        return replace(self.settings.config(base), balancing=self.balancing.currentData())

    def show_config(self, config: TrainConfig) -> None:
        """Show a session's settings."""
        self.balancing.setCurrentIndex(self.balancing.findData(config.balancing))
        self.settings.show_config(config)

    def show_statistics(self, statistics: LabelStatistics, classes: Sequence[ClassDef]) -> None:
        """Draw the bars anew."""
        self._statistics, self._classes = statistics, tuple(classes)
        self._show_balancing()

    def show_status(self, status: Status) -> None:
        """Buttons, progress, numbers, curve and log for a state of the session."""
        if status.state in ("training", "paused") and self._state not in ("training", "paused"):
            self._rate = (time.monotonic(), status.step, 0.0)
        self._state = status.state
        running = status.state in ("training", "paused")
        self.train.setText({"training": "Pause", "paused": "Resume"}.get(status.state, "Train"))
        self.train.setAccessibleName(self.train.text())
        self.train.setEnabled(status.state != "predicting")
        self.stop.setEnabled(running)
        self.balancing.setEnabled(not running)
        self.settings.show_running(running, has_model=bool(status.model_version))
        # without an end there is no bar: a moving one redraws the whole window, canvas included, all the time
        self.progress.setVisible(running and bool(status.budget_seconds))
        if status.budget_seconds:
            self.progress.setValue(min(PROGRESS_STEPS, round(PROGRESS_STEPS * status.seconds / status.budget_seconds)))
        self.numbers.setText(self._numbers(status))
        self.numbers.setVisible(bool(self.numbers.text()))
        if status.loss is not None and running:
            self.curves.add_loss(status.seconds, status.loss)
        if status.message and status.message != self._last_message:
            self.say(status.message)
        self._last_message = status.message

    def show_scores(self, seconds: float, dice: dict[int, float], mean: float | None, text: str) -> None:
        """Held-out scores of the present model."""
        self.curves.add_dice(seconds, dice, mean, self._classes)
        self.scores.setText(text)
        self.scores.setVisible(bool(text))

    def say(self, text: str) -> None:
        """One line in the log."""
        self.log.show()
        self.log.appendPlainText(f"{time.strftime('%H:%M:%S')}  {sentence(text)}")
        self.log.verticalScrollBar().setValue(self.log.verticalScrollBar().maximum())

    def _on_train(self) -> None:
        signals: dict[str, Any] = {"training": self.pause_requested, "paused": self.resume_requested}
        signals.get(self._state, self.train_requested).emit()

    def _show_balancing(self) -> None:
        key = self.balancing.currentData()
        self.explanation.setText(BALANCING[key][1])
        tip = f"How labelled pixels share the loss; the bars below show what comes of it\n{MEASURED[key]}"
        self.balancing.setToolTip(plain_tip(tip))
        if self._statistics is not None:
            labelled = {c.id: self._statistics.pixel_share(c.id) for c in self._classes}
            self.bars.show_shares(self._classes, labelled, self._statistics.loss_shares(key))

    def _numbers(self, status: Status) -> str:
        if not status.step and status.state not in ("training", "paused"):
            return ""
        since, step, rate = self._rate
        now = time.monotonic()
        if status.state == "training" and now - since >= 2.0:
            rate = (status.step - step) / (now - since)
            self._rate = (now, status.step, rate)
        parts = [f"step {status.step}"]
        if status.state == "training" and rate > 0:
            parts.append(f"{rate:.1f} per s")
        if status.loss is not None:
            parts.append(f"loss {status.loss:.3f}")
        parts.append(_clock(status.seconds) + (f" of {_clock(status.budget_seconds)}" if status.budget_seconds else ""))
        if status.device:
            parts.append(status.device)
        return " · ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


SCRATCH = "scratch"
ENCODERS = {
    DEFAULT_ENCODER: "EfficientNet-Lite0",
    SCRATCH: "U-Net from scratch",
}
BUDGETS = {"Until I stop": 0, "1 minute": 60, "5 minutes": 300, "15 minutes": 900, "1 hour": 3600}


class TrainSettings(QWidget):
    """Resolution, network, device, budget, seed.

    Attributes
    ----------
    load_requested, save_requested
        Signals (): of a model file.
    """

    load_requested = Signal()
    save_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.mpp = QDoubleSpinBox()
        self.mpp.setDecimals(2)
        self.mpp.setRange(0.0, 100.0)
        self.mpp.setSingleStep(0.25)
        self.mpp.setSpecialValueText("automatic")
        self.mpp.setSuffix(" µm/px")
        self.mpp.setToolTip(
            "Coarser sees more tissue at once and is faster, finer sees nuclei; automatic is 1 µm per pixel"
        )
        self.encoder = QComboBox()
        self.encoder.setEditable(True)
        for key, text in ENCODERS.items():
            self.encoder.addItem(text, key)
        self.encoder.setToolTip(
            "What the network knows before the first stroke: EfficientNet-Lite0 is built in and quick, the U-Net of "
            "the paper knows nothing yet. Any encoder that timm knows can be typed in; its licence and size are shown "
            "before it is downloaded"
        )
        self.encoder.activated.connect(self._show_beginning)
        self.encoder.lineEdit().editingFinished.connect(self._show_beginning)
        self._show_beginning()
        self.encoder.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.device = QComboBox()
        devices = ["auto", "cpu", *(["mps"] if sys.platform == "darwin" else ["cuda"])]
        self.device.addItems(devices)
        self.device.setToolTip("Where to compute; auto takes a graphics card where there is one")
        self.budget = QComboBox()
        for text, seconds in BUDGETS.items():
            self.budget.addItem(text, seconds)
        self.budget.setToolTip(
            "For training that ends while you are away; Stop ends it at any time, Train goes on where it was"
        )
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        self.seed.setToolTip("For a run that can be repeated: the same seed and the same strokes draw the same patches")
        self.load = button("Load model…", "Predict with a saved model, or go on training it", self.load_requested.emit)
        self.save = button(
            "Save model…", "The present model as one file, for other slides or the shell", self.save_requested.emit
        )
        form = QFormLayout(self)
        form.setContentsMargins(10, 0, 0, 0)
        form.setSpacing(SPACING)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Resolution", self.mpp)
        form.addRow("Network", self.encoder)
        form.addRow("Device", self.device)
        form.addRow("Time", self.budget)
        form.addRow("Seed", self.seed)
        form.addRow(row(self.load, self.save))

    @property
    def seconds(self) -> float | None:
        """Budget of a run; None without an end."""
        return float(self.budget.currentData()) or None

    def show_running(self, running: bool, *, has_model: bool) -> None:
        """A run keeps the settings it began with; its model can be saved at any moment."""
        for widget in (self.mpp, self.encoder, self.device, self.budget, self.seed, self.load):
            widget.setEnabled(not running)
        self.save.setEnabled(has_model)

    def config(self, base: TrainConfig) -> TrainConfig:
        """`base` with what is chosen here."""
        index = self.encoder.findText(self.encoder.currentText())
        encoder = self.encoder.itemData(index) if index >= 0 else self.encoder.currentText().strip()
        architecture: Architecture = "scratch" if encoder == SCRATCH else "pretrained"
        return replace(
            base,
            mpp=self.mpp.value() or None,
            encoder=DEFAULT_ENCODER if encoder in ("", SCRATCH) else encoder,
            architecture=architecture,
            device=self.device.currentText(),
            seed=self.seed.value(),
        )

    def _show_beginning(self) -> None:
        """Where a name is too long for the box, its end is cut off and not its beginning."""
        self.encoder.lineEdit().setCursorPosition(0)

    def show_config(self, config: TrainConfig) -> None:
        """Show a session's settings."""
        self.mpp.setValue(config.mpp or 0.0)
        key = SCRATCH if config.architecture == "scratch" else config.encoder
        index = self.encoder.findData(key)
        if index >= 0:
            self.encoder.setCurrentIndex(index)
        else:
            self.encoder.setCurrentText(key)
        self._show_beginning()
        if self.device.findText(config.device) < 0:
            self.device.addItem(config.device)
        self.device.setCurrentText(config.device)
        self.seed.setValue(config.seed)
