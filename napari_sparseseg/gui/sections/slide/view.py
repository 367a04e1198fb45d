"""Slide section: open files, switch between slides, enter the resolution when the file lacks it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QLabel, QWidget

from napari_sparseseg.gui.widgets import NameBox, button, column, menu_button, note, plain_tip, row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.slides import Slide

ROLES = {
    "train": "Use for training",
    "held-out": "Hold out for testing",
    "predict": "Predict only",
}


class SlidePanel(QWidget):
    """The body of the section.

    Attributes
    ----------
    open_requested, sample_requested, skin_requested, import_requested, close_requested
        Signals ().
    layer_chosen, slide_chosen
        Signals (index) into what `show_layers` and `show_slides` were given.
    image_chosen
        Signal (number) of an image in the file of the active slide.
    role_chosen
        Signal (role).
    mpp_entered
        Signal (float), um per pixel.
    recent_chosen
        Signal (path).
    """

    open_requested = Signal()
    sample_requested = Signal()
    skin_requested = Signal()
    import_requested = Signal()
    close_requested = Signal()
    layer_chosen = Signal(int)
    slide_chosen = Signal(int)
    image_chosen = Signal(int)
    role_chosen = Signal(str)
    mpp_entered = Signal(float)
    recent_chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.open = button(
            "Open slide…", "Open any slide that OpenSlide or tifffile reads, or drop it on the viewer",
            self.open_requested.emit,
        )  # fmt: skip
        self.sample = menu_button(
            "Sample",
            "Open a small slide with scribbles, to try the plugin",
            (
                ("Real slide (skin)", self.skin_requested.emit),
                ("Synthetic slide with known truth", self.sample_requested.emit),
            ),
        )
        self.recent = menu_button("Recent", "Slides and projects opened lately", ())
        self.slides = NameBox("Open slides; all of them share one class table and one model")
        self.slides.activated.connect(self.slide_chosen.emit)
        self.close_slide = button("Close", "Close this slide; its annotations stay on disk", self.close_requested.emit)
        self.facts = note()
        self.images = NameBox("The images in this file; each is a slide of its own")
        self.images.activated.connect(self.image_chosen.emit)
        self.role = QComboBox()
        for key, text in ROLES.items():
            self.role.addItem(text, key)
        self.role.setToolTip(
            "Annotations on a held-out slide are never used for training; they measure how good the model is"
        )
        self.role.activated.connect(lambda i: self.role_chosen.emit(self.role.itemData(i)))
        self.mpp_label = QLabel("µm per pixel")
        self.mpp = QDoubleSpinBox()
        self.mpp.setDecimals(4)
        self.mpp.setRange(0.0, 1000.0)
        self.mpp.setSpecialValueText("unknown")
        self.mpp.setKeyboardTracking(False)
        self.mpp.setToolTip("The file does not contain it; areas in mm² and models from other slides need it")
        self.mpp.valueChanged.connect(self.mpp_entered.emit)
        self.import_button = button(
            "Import…",
            "Add annotations from QuPath (GeoJSON), ASAP (XML) or this plugin; one undo removes them",
            self.import_requested.emit,
        )
        self.layers = NameBox("An image that is open in napari already")
        self.use_layer = button(
            "Use layer", "Annotate the layer chosen here without opening its file again", self._on_use_layer
        )
        layout = column(self)
        layout.addLayout(row(self.open, self.recent, self.sample, stretch=0))
        layout.addLayout(row(self.layers, self.use_layer, stretch=0))
        layout.addLayout(row(self.slides, self.close_slide, stretch=0))
        layout.addWidget(self.images)
        layout.addWidget(self.facts)
        layout.addLayout(row(self.mpp_label, self.mpp, stretch=1))
        layout.addLayout(row(self.role, self.import_button, stretch=0))
        self.show_slides([], -1)
        self.show_layers([])

    def _on_use_layer(self) -> None:
        self.layer_chosen.emit(self.layers.currentIndex())

    def show_recent(self, paths: Sequence[str]) -> None:
        """Fill the menu; the button is hidden while it is empty."""
        menu = self.recent.menu()
        menu.setToolTipsVisible(True)
        menu.clear()
        for path in paths:
            action = menu.addAction(PurePath(path).name.replace("&", "&&"))
            action.setToolTip(plain_tip(path))
            action.triggered.connect(lambda _=False, path=path: self.recent_chosen.emit(path))
        self.recent.setVisible(bool(paths))

    def show_layers(self, names: Sequence[str]) -> None:
        """List image layers that are not slides of the session; hidden without any."""
        chosen = self.layers.currentText()
        self.layers.clear()
        self.layers.addItems(list(names))
        if chosen in names:
            self.layers.setCurrentText(chosen)
        for widget in (self.layers, self.use_layer):
            widget.setVisible(bool(names))

    def show_slides(self, names: Sequence[str], active: int) -> None:
        """The open slides."""
        self.slides.clear()
        self.slides.addItems(list(names))
        self.slides.setCurrentIndex(active)
        for widget in (self.slides, self.close_slide, self.facts, self.role, self.import_button):
            widget.setVisible(bool(names))
        if not names:
            for widget in (self.mpp, self.mpp_label, self.images):
                widget.hide()

    def show_slide(self, slide: Slide, role: str, facts: str) -> None:
        """Show the active slide; the mpp can be entered when the file lacks it."""
        self.facts.setText(facts)
        self.role.setCurrentIndex(self.role.findData(role))
        self.images.clear()
        self.images.addItems([f"{k}: {i.name} ({i.width} × {i.height} px)" for k, i in enumerate(slide.images)])
        self.images.setCurrentIndex(-1 if slide.image is None else slide.image)
        self.images.setVisible(bool(slide.images))
        unknown = not slide.contents.mpp
        for widget in (self.mpp, self.mpp_label):
            widget.setVisible(unknown)
        self.mpp.blockSignals(True)
        self.mpp.setValue(0.0 if slide.mpp is None else slide.mpp[0])
        self.mpp.blockSignals(False)


def slide_facts(slide: Slide) -> str:
    """Size, resolution, format and warnings in one or two lines."""
    h, w = slide.shape
    parts = [f"{w:,} × {h:,} px".replace(",", "\u202f")]
    if slide.mpp is not None:
        parts.append(f"{slide.mpp[0]:.4g} µm/px")
        parts.append(f"{w * slide.mpp[1] / 1000:.3g} × {h * slide.mpp[0] / 1000:.3g} mm")
    parts.append(slide.contents.format)
    if slide.mpp is None:
        parts.append("µm per pixel unknown, enter it below")
    unbroken = [part.replace(" ", "\u00a0") for part in parts]  # lines break between the parts only
    return "\n".join([" · ".join(unbroken[:2]), *filter(None, [" · ".join(unbroken[2:])]), *slide.warnings])
