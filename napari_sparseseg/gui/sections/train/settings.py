"""The settings of training that most people never touch."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QFormLayout, QSpinBox, QWidget

from napari_sparseseg.config import DEFAULT_ENCODER, TrainConfig
from napari_sparseseg.gui.widgets import SPACING, button, row

if TYPE_CHECKING:
    from napari_sparseseg.config import Architecture

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
