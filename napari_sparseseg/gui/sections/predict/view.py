"""Predict section: the live prediction, guidance, areas, and the whole slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QRectF, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QGuiApplication, QLinearGradient, QPainter
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QHeaderView,
    QLabel,
    QPushButton,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_sparseseg.gui.layers.prediction import Shown
from napari_sparseseg.gui.layers.prediction_colours import ramp_rgb
from napari_sparseseg.gui.sections.classes.table import MOST_ROWS, percent, swatch
from napari_sparseseg.gui.sections.predict.areas import areas_csv
from napari_sparseseg.gui.widgets import (
    ElidedLabel,
    NameBox,
    button,
    column,
    fit_rows,
    fix_rows,
    menu_button,
    note,
    plain_tip,
    row,
    scroll_to,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtpy.QtGui import QPaintEvent

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.sections.predict.areas import Area

CONTOUR_PX = 2
RAMP_STEPS = 16
FEW_TILES = 4
LIVE, LIVE_ROUGH = "Live prediction", "Live: rough outside the middle"
PREDICT_SLIDE = "Predict slide…"
PREDICT_SLIDE_TIP = "Predict the whole slide into an OME-Zarr or OME-TIFF file; training pauses meanwhile"
CANCEL_TIP = "Stop after the current tile; predicting into the same file continues from there"


class PredictPanel(QWidget):
    """The body of the section.

    Attributes
    ----------
    live_toggled, contour_toggled, hidden_toggled
        Signals (bool).
    shown_chosen
        Signal (Shown).
    opacity_changed
        Signal (float), 0..1.
    accept_toggled
        Signal (bool).
    next_requested, review_requested, slide_requested, geojson_requested, csv_requested, scribbles_requested
        Signals ().
    layer_requested, folder_requested, results_requested
        Signals (): show what was written last, open its folder, measure it.
    """

    live_toggled = Signal(bool)
    contour_toggled = Signal(bool)
    hidden_toggled = Signal(bool)
    shown_chosen = Signal(object)
    opacity_changed = Signal(float)
    accept_toggled = Signal(bool)
    next_requested = Signal()
    review_requested = Signal()
    slide_requested = Signal()
    geojson_requested = Signal()
    csv_requested = Signal()
    scribbles_requested = Signal()
    layer_requested = Signal()
    folder_requested = Signal()
    results_requested = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.live = QCheckBox(LIVE)
        self.live.setChecked(True)
        self.live.setToolTip("Predict the visible region and learn every stroke at once, also while training is paused")
        self.live.toggled.connect(self.live_toggled.emit)
        self.what = NameBox("Classes, or how certain the model is; strokes help most where it is uncertain")
        self.what.activated.connect(lambda i: self.shown_chosen.emit(self.what.itemData(i)))
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setToolTip("Opacity of the prediction over the slide")
        self.opacity.setAccessibleName("Opacity")
        self.opacity.valueChanged.connect(lambda v: self.opacity_changed.emit(v / 100))
        self.hide_prediction = QPushButton("Hide")
        self.hide_prediction.setCheckable(True)
        self.hide_prediction.setToolTip("Hide the prediction to see the slide; it is still computed")
        self.hide_prediction.toggled.connect(self.hidden_toggled.emit)
        self.contour = QCheckBox("Outlines")
        self.contour.setToolTip("Show outlines of the predicted regions only")
        self.contour.toggled.connect(self.contour_toggled.emit)
        self.next = button(
            "Next uncertain region",
            "Go to the unlabelled tissue where the model is least certain",
            self.next_requested.emit,
        )
        self.review = button(
            "Review mistakes",
            "Go to the held-out strokes that the model predicts wrongly, worst first",
            self.review_requested.emit,
        )
        self.accept = self._accept_button()
        self.doubt = note()
        self.doubt.hide()
        self.areas = AreaPanel()
        self.predict_slide = button(
            PREDICT_SLIDE,
            PREDICT_SLIDE_TIP,
            self.slide_requested.emit,
        )
        self.export = menu_button(
            "Export", "Export the predicted slide or the annotations to other programs",
            (
                ("Regions for QuPath (GeoJSON)…", self.geojson_requested.emit),
                ("Areas of the slide (CSV)…", self.csv_requested.emit),
                ("Annotations for QuPath (GeoJSON)…", self.scribbles_requested.emit),
            ),
        )  # fmt: skip
        self.ramp = Ramp()
        layout = column(self)
        layout.addLayout(row(self.live, self.contour, stretch=0))
        layout.addLayout(row(QLabel("Show"), self.what, stretch=1))
        layout.addWidget(self.ramp)
        layout.addLayout(row(QLabel("Opacity"), self.opacity, self.hide_prediction, stretch=1))
        layout.addWidget(self.next)
        layout.addLayout(row(self.review, self.accept, stretch=0))
        layout.addWidget(self.doubt)
        layout.addWidget(self.areas)
        layout.addLayout(row(self.predict_slide, self.export, stretch=0))
        layout.addLayout(self._result_row())

    def _result_row(self) -> QVBoxLayout:
        self.result = ElidedLabel()
        self.show_layer = button("Show", "Show the predicted slide as a layer", self.layer_requested.emit)
        self.open_folder = button("Open folder", "Open the folder of this file", self.folder_requested.emit)
        self.show_table = button("Table", "Objects and areas of the predicted slide", self.results_requested.emit)
        for widget in (self.result, self.show_layer, self.show_table, self.open_folder):
            widget.hide()
        rows = QVBoxLayout()
        rows.addWidget(self.result)  # a row of its own: beside buttons little would be left of a file's name
        rows.addLayout(row(self.show_layer, self.show_table, self.open_folder))
        return rows

    def _accept_button(self) -> QPushButton:
        made = QPushButton("Accept regions")
        made.setCheckable(True)
        made.setToolTip("Click a correctly predicted region to add it to the annotations, as a dense region")
        made.toggled.connect(self.accept_toggled.emit)
        return made

    def show_choices(self, classes: Sequence[ClassDef], shown: Shown) -> None:
        """Fill the list of views; `shown` is the current one."""
        choices = [
            ("Classes", Shown()), ("Uncertainty", Shown("uncertainty")),
            ("Uncertainty of the best class", Shown("margin")), ("Changes since the last model", Shown("changed")),
        ]  # fmt: skip
        choices += [(f"Probability of {c.name}", Shown("probability", c.id)) for c in classes]
        self.what.clear()
        for text, what in choices:
            self.what.addItem(text, what)
        self.what.setCurrentIndex(next((i for i, (_, w) in enumerate(choices) if w == shown), 0))

    def show_opacity(self, opacity: float, *, visible: bool) -> None:
        """Follow the slider and the eye of the layer."""
        for control in (self.opacity, self.hide_prediction):
            control.blockSignals(True)
        self.opacity.setValue(round(100 * opacity))
        self.hide_prediction.setChecked(not visible)
        for control in (self.opacity, self.hide_prediction):
            control.blockSignals(False)

    def show_model(self, present: bool) -> None:
        """Enable the controls that need a model."""
        needs_model = (self.next, self.review, self.accept, self.predict_slide)
        for widget in (*needs_model, self.what, self.contour, self.hide_prediction):
            widget.setEnabled(present)

    def show_predicting(self, running: bool) -> None:
        """Make the button cancel while a whole slide is predicted."""
        text = "Cancel prediction" if running else PREDICT_SLIDE
        if self.predict_slide.text() != text:
            self.predict_slide.setText(text)
            self.predict_slide.setToolTip(plain_tip(CANCEL_TIP if running else PREDICT_SLIDE_TIP))
        self.export.setEnabled(not running)

    def show_doubt(self, text: str) -> None:
        """Describe the region that the view moved to."""
        self.doubt.setText(text)
        self.doubt.setVisible(bool(text))

    def show_progress(self, done: int, of: int, *, rough: bool = False) -> None:
        """Say how far the live prediction of what is on screen is; a view of a few tiles is there at once.

        With `rough` all of a wide view is there, only its middle at full resolution.
        """
        ended = done >= of or of <= FEW_TILES
        self.live.setText((LIVE_ROUGH if rough else LIVE) if ended else f"Live: {done} of {of} tiles")

    def show_result(self, text: str, *, folder: bool = False, layer: bool = False, table: bool = False) -> None:
        """Say which file was written, and offer its folder, a layer and a table of it."""
        self.show_table.setVisible(table)
        self.open_folder.setVisible(folder)
        self.show_layer.setVisible(layer)
        seen = not self.predict_slide.visibleRegion().isEmpty()
        self.result.setText(text)
        self.result.setVisible(bool(text))
        if text and seen:  # keep the message visible if the button was
            QTimer.singleShot(0, lambda: scroll_to(self.result))


HEADINGS = ("Class", "mm²", "Share")
PLACES = (
    ("On screen", "The areas on screen appear here after the first prediction."),
    (
        "Drawn region",
        "Select a dense region, or a rectangle or polygon of a Shapes layer.",
    ),
    ("Whole slide", "Predict the whole slide first."),
)
"""Where areas are measured, and the text shown when there are none."""
SCREEN, DRAWN, WHOLE = range(3)
WHOLE_PART = 0.995
"""From this share on, a place counts as predicted completely."""


class Ramp(QWidget):
    """The colours of an uncertainty, from certain to uncertain."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(16)
        self.setAccessibleName("Legend: from certain, left, to uncertain, right")
        self.setToolTip("Colours of the uncertainty; where the model is certain the slide shows through")
        self.hide()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        painter = QPainter(self)
        metrics, ends = self.fontMetrics(), ("certain", "uncertain")
        left, right = (metrics.horizontalAdvance(text) + 6 for text in ends)
        bar = QRectF(left, 2, max(10, self.width() - left - right), self.height() - 4)
        gradient = QLinearGradient(bar.topLeft(), bar.topRight())
        for at, (r, g, b) in enumerate(ramp_rgb(RAMP_STEPS)):
            gradient.setColorAt(at / (RAMP_STEPS - 1), QColor.fromRgbF(r, g, b, at / (RAMP_STEPS - 1)))
        painter.fillRect(bar, QColor("#f2f0ef"))  # glass
        painter.fillRect(bar, gradient)
        painter.setPen(self.palette().text().color())
        middle = int(Qt.AlignmentFlag.AlignVCenter)
        painter.drawText(QRectF(0, 0, left, self.height()), middle | int(Qt.AlignmentFlag.AlignLeft), ends[0])
        painter.drawText(
            QRectF(bar.right(), 0, right, self.height()), middle | int(Qt.AlignmentFlag.AlignRight), ends[1]
        )
        painter.end()


class AreaPanel(QWidget):
    """Table of predicted areas, on screen, in a drawn region or of the whole slide.

    Attributes
    ----------
    place_chosen
        Signal (int): `SCREEN`, `DRAWN` or `WHOLE`.
    table_requested
        Signal (str): save the table; its CSV text.
    """

    place_chosen = Signal(int)
    table_requested = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.areas: list[Area] = []
        """Rows of the table."""
        self.table = _area_table()
        self.empty = note()
        self.place = QComboBox()
        self.place.setToolTip("Measure what is on screen, a drawn region, or the whole slide")
        self.place.setAccessibleName("Areas of")
        self.place.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.place.addItems([name for name, _ in PLACES])
        self.place.activated.connect(self.place_chosen.emit)
        self.copy = button("Copy", "Copy the table as CSV, to paste it into a spreadsheet", self._on_copy)
        self.save = button(
            "Save…",
            "Save the table as a CSV file",
            lambda: self.table_requested.emit(areas_csv(self.areas)),
        )
        layout = column(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(QLabel("Areas"), self.place, self.copy, self.save, stretch=1))
        layout.addWidget(self.empty)
        layout.addWidget(self.table)
        self.show_areas([])

    def show_areas(self, areas: Sequence[Area], part: float = 1.0) -> None:
        """Fill the table; `part` of the place, 0..1, is predicted and counted."""
        self.areas = list(areas)
        known = [a for a in self.areas if a.share > 0]
        unit = "mm²" if all(a.mm2 is not None for a in known) else "px"
        self.table.setHorizontalHeaderLabels((HEADINGS[0], unit, HEADINGS[2]))
        self.table.horizontalHeaderItem(0).setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.table.setRowCount(len(known))
        for r, a in enumerate(known):
            size = f"{a.mm2:.4g}" if a.mm2 is not None else f"{a.pixels:.4g}"
            for column_, text in enumerate((a.name, size, percent(a.share))):
                item = QTableWidgetItem(text)
                if column_ == 0:
                    item.setIcon(swatch(a.colour))
                else:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.table.setItem(r, column_, item)
        fit_rows(self.table, MOST_ROWS)
        self.table.setVisible(bool(known))
        counted = f"Counted: {percent(min(part, 0.99))} of what is on screen; the rest is not predicted yet."
        self.empty.setText(counted if known else PLACES[self.place.currentIndex()][1])
        self.empty.setVisible(not known or part < WHOLE_PART)
        self.copy.setEnabled(bool(known))
        self.save.setEnabled(bool(known))

    def _on_copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(areas_csv(self.areas))


def _area_table() -> QTableWidget:
    table = QTableWidget(0, len(HEADINGS))
    table.setHorizontalHeaderLabels(HEADINGS)
    table.setToolTip("Predicted area of each class")
    table.setAccessibleName("Predicted areas")
    fix_rows(table)
    table.setShowGrid(False)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    header = table.horizontalHeader()
    header.setSectionsClickable(False)
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    for column_ in (1, 2):
        header.setSectionResizeMode(column_, QHeaderView.ResizeMode.ResizeToContents)
    return table
