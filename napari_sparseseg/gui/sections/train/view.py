"""Train section: start, pause and stop; balancing; progress; the settings under More."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QPlainTextEdit,
    QProgressBar,
    QSpinBox,
    QWidget,
)

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
    "instance": (
        "By patch (instance)",
        "Every patch has the same weight, and so has every class in it: small strokes count as much as large ones.",
    ),
    "mini-batch": ("By batch (mini-batch)", "Every class has the same weight in a batch, however few its pixels."),
    "none": ("None", "Every labelled pixel has the same weight: large strokes dominate."),
}
MEASURED = {
    "instance": "Best in our study when a class is rare and partly labelled densely; otherwise as good as the others",
    "mini-batch": "Best in our study for a network trained from scratch on several classes; otherwise behind by patch",
    "none": "As good as the others in our study for classes of similar size, but not from scratch; may miss rare ones",
}
"""Results of `tests.benchmarks.study_balancing`."""
BIG_BUTTON = 36
UNDO_TIP = "Predict again with the model of before the last training run; no annotation is changed"
LOG_HEIGHT = 72
LOG_LINES = 500
PROGRESS_STEPS = 1000


class TrainPanel(QWidget):
    """The body of the section: settings. What is pressed and watched has places of its own.

    Attributes
    ----------
    bar
        Train, Stop and the numbers of the run. Its height never changes, so that Train stays under the pointer.
    results
        Curves, scores and log.
    train_requested, pause_requested, resume_requested, stop_requested
        Signals ().
    runs_requested, undo_requested
        Signals (): list the training runs; go back to the model before the last one.
    """

    train_requested = Signal()
    pause_requested = Signal()
    resume_requested = Signal()
    stop_requested = Signal()
    runs_requested = Signal()
    undo_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._state, self._last_message, self._pressed = "idle", "", -math.inf
        self._statistics: LabelStatistics | None = None
        self._classes: tuple[ClassDef, ...] = ()
        self._rate: tuple[float, int, float] = (0.0, 0, 0.0)
        self.balancing = QComboBox()
        for key, (text, _) in BALANCING.items():
            self.balancing.addItem(text, key)
        self.balancing.currentIndexChanged.connect(lambda _: self._show_balancing())
        self.explanation = note()
        self.bars = ShareBars()
        self.train = button("Train", "Train on all annotations; you can keep drawing meanwhile", self._on_train)
        self.train.setFixedHeight(BIG_BUTTON)
        self.train.setAccessibleName("Train")
        self.stop = button("Stop", "End training and save the model; Train continues from it", self.stop_requested.emit)
        self.stop.setFixedHeight(BIG_BUTTON)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(6)
        self.progress.setRange(0, PROGRESS_STEPS)
        self.numbers = ElidedLabel()
        self.settings = AdvancedSettings()
        self.more = Section(
            "More",
            self.settings,
            tip="Resolution, network, device, time and seed; the defaults are fine to start",
            opened=False,
        )
        self.curves = Curves()
        self.scores = note()
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LOG_LINES)
        self.log.setFixedHeight(LOG_HEIGHT)
        self.log.setAccessibleName("Log")
        self.log.setToolTip("Messages of this session, newest last")
        self.log.hide()
        layout = column(self)
        for widget in (self.balancing, self.explanation, self.bars, self.more):
            layout.addWidget(widget)
        self.runs = button(
            "Runs…", "List the training runs of this project: compare two, go back to one", self.runs_requested.emit
        )
        self.undo = button("Undo training", UNDO_TIP, self.undo_requested.emit)
        self.bar, self.results = self._make_bar(), self._make_results()
        self._show_balancing()
        self.progress.hide()
        self.scores.hide()

    def _make_results(self) -> QWidget:
        results = QWidget()
        layout = column(results)
        for widget in (self.curves, self.scores):
            layout.addWidget(widget)
        layout.addLayout(row(self.runs, self.undo))
        layout.addWidget(self.log)
        return results

    def _make_bar(self) -> QWidget:
        bar = QWidget()
        layout = column(bar)
        layout.addLayout(row(self.train, self.stop, stretch=0))
        kept = self.progress.sizePolicy()
        kept.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(kept)
        layout.addWidget(self.progress)
        layout.addWidget(self.numbers)  # one line, also while it is empty
        return bar

    def config(self, base: TrainConfig) -> TrainConfig:
        """`base` with what is chosen here."""
        return replace(self.settings.config(base), balancing=self.balancing.currentData())

    def show_config(self, config: TrainConfig) -> None:
        """Show a session's settings."""
        self.balancing.setCurrentIndex(self.balancing.findData(config.balancing))
        self.settings.show_config(config)

    def show_statistics(self, statistics: LabelStatistics, classes: Sequence[ClassDef]) -> None:
        """Redraw the bars."""
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
        # without a budget there is no bar: a moving one would redraw the whole window, canvas included, all the time
        self.progress.setVisible(running and bool(status.budget_seconds))
        if status.budget_seconds:
            self.progress.setValue(min(PROGRESS_STEPS, round(PROGRESS_STEPS * status.seconds / status.budget_seconds)))
        self.numbers.setText(self._numbers(status))
        if status.loss is not None and running:
            self.curves.add_loss(status.seconds, status.loss)
        if status.message and status.message != self._last_message:
            self.say(status.message)
        self._last_message = status.message

    def show_scores(self, seconds: float, dice: dict[int, float], mean: float | None, text: str) -> None:
        """Held-out scores of the current model."""
        if dice or mean is not None:
            self.curves.add_dice(seconds, dice, mean, self._classes)
        self.scores.setText(text)
        self.scores.setVisible(bool(text))

    def show_undo(self, act: str, *, enabled: bool) -> None:
        """What the button *Undo training* would do now; empty: nothing."""
        verb, _, what = act.partition(" ")
        self.undo.setText(f"{verb.capitalize() or 'Undo'} {'training' if what in ('', 'training') else 'going back'}")
        self.undo.setEnabled(enabled)
        self.undo.setToolTip(plain_tip(f"{UNDO_TIP}\nNow: {act}" if act else UNDO_TIP))

    def say(self, text: str) -> None:
        """One line in the log."""
        self.log.show()
        self.log.appendPlainText(f"{time.strftime('%H:%M:%S')}  {sentence(text)}")
        self.log.verticalScrollBar().setValue(self.log.verticalScrollBar().maximum())

    def _on_train(self) -> None:
        signals: dict[str, Any] = {"training": self.pause_requested, "paused": self.resume_requested}
        now, before = time.monotonic(), self._pressed
        self._pressed = now
        # the second click of a double click would pause what the first one started
        if self._state != "training" or now - before > QApplication.doubleClickInterval() / 1e3:
            signals.get(self._state, self.train_requested).emit()

    def _show_balancing(self) -> None:
        key = self.balancing.currentData()
        self.explanation.setText(BALANCING[key][1])
        tip = f"How labelled pixels are weighted in training; the bars below show the result\n{MEASURED[key]}"
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


class AdvancedSettings(QWidget):
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
        self.mpp.setToolTip("Coarser is faster and uses more context, finer shows nuclei; automatic is 1 µm per pixel")
        self.encoder = QComboBox()
        self.encoder.setEditable(True)
        self.encoder.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)  # a name typed here is not an entry with a key
        for key, text in ENCODERS.items():
            self.encoder.addItem(text, key)
        self.encoder.setToolTip(
            "EfficientNet-Lite0 is pretrained, built in and fast; the U-Net is trained from scratch, as in the paper. "
            "You can also type the name of any timm encoder; its licence and size are shown before it is downloaded"
        )
        self.encoder.activated.connect(self._scroll_to_start)
        self.encoder.lineEdit().editingFinished.connect(self._scroll_to_start)
        self._scroll_to_start()
        self.encoder.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.device = QComboBox()
        devices = ["auto", "cpu", *(["mps"] if sys.platform == "darwin" else ["cuda"])]
        self.device.addItems(devices)
        self.device.setToolTip("Where to compute; auto uses a graphics card if there is one")
        self.budget = QComboBox()
        for text, seconds in BUDGETS.items():
            self.budget.addItem(text, seconds)
        self.budget.setToolTip("End training after this time; Stop ends it at any time, and Train continues")
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        self.seed.setToolTip(
            "The same seed and the same annotations give the same patches, for a run that can be repeated"
        )
        self.load = button(
            "Load model…", "Predict with a saved model, or continue training it", self.load_requested.emit
        )
        self.save = button(
            "Save model…",
            "Save the current model as one file, for other slides or the command line",
            self.save_requested.emit,
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
        """Budget of a run; None: unlimited."""
        return float(self.budget.currentData()) or None

    def show_running(self, running: bool, *, has_model: bool) -> None:
        """Settings are fixed during a run; its model can be saved at any time."""
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

    def _scroll_to_start(self) -> None:
        """Show the beginning of a name that is too long for the box."""
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
        self._scroll_to_start()
        if self.device.findText(config.device) < 0:
            self.device.addItem(config.device)
        self.device.setCurrentText(config.device)
        self.seed.setValue(config.seed)
