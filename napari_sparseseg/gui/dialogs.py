"""Modal questions to the user: files, colours, confirmations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QFileDialog, QMessageBox

from napari_sparseseg.gui.reader import SLIDE_SUFFIXES

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

_SHARED = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".dcm")
"""Suffixes of slides that other files have too."""
SLIDES = f"Slides ({' '.join(f'*{suffix}' for suffix in (*SLIDE_SUFFIXES, *_SHARED))});;All files (*)"
ANNOTATIONS = "Annotations (*.geojson *.json *.xml *.sparseseg *.sqlite *.png *.tif *.tiff);;All files (*)"
QUPATH_CLASSES = "QuPath (*.qpproj *.json *.geojson);;All files (*)"
PRESETS = "Presets (*.json);;Models (*.safetensors)"
MODELS = "Models (*.safetensors)"
MODELS_TO_OPEN = "Models (*.safetensors *.onnx *.zip)"
"""Others' too: ONNX files, bioimage.io packages."""
RESULTS = "OME-Zarr (*.ome.zarr);;OME-TIFF (*.ome.tif)"


def ask_open(parent: QWidget, title: str, kinds: str) -> str:
    """An existing file, or an empty string."""
    path, _ = QFileDialog.getOpenFileName(parent, title, "", kinds)
    return str(path)


def ask_open_several(parent: QWidget, title: str, kinds: str) -> list[str]:
    """Existing files; empty when cancelled."""
    paths, _ = QFileDialog.getOpenFileNames(parent, title, "", kinds)
    return [str(p) for p in paths]


def ask_folder(parent: QWidget, title: str) -> str:
    """An existing folder, or an empty string."""
    return str(QFileDialog.getExistingDirectory(parent, title))


def ask_save(parent: QWidget, title: str, suggestion: str, kinds: str) -> str:
    """A file to write, with the suffix of the chosen format, or an empty string."""
    path, kind = QFileDialog.getSaveFileName(parent, title, suggestion, kinds)
    if not path:
        return ""
    suffix = kind[kind.find("(*") + 2 : kind.find(")")].split(" ")[0]
    known = [k.split(")")[0].split(" ")[0] for k in kinds.split("(*")[1:]]
    if any(str(path).lower().endswith(s) for s in known if s):
        return str(path)
    path = f"{path}{suffix}"  # the dialog has asked about the name without it
    asks = Path(path).is_file() and not ask_yes(parent, title, f"{path} exists already. Replace it?", "Replace")
    return "" if asks else path


def ask_colour(parent: QWidget, title: str, colour: str) -> str:
    """``#rrggbb``, or an empty string."""
    chosen = QColorDialog.getColor(QColor(colour), parent, title)
    return str(chosen.name()) if chosen.isValid() else ""


def ask_yes(parent: QWidget, title: str, question: str, yes: str) -> bool:
    """Whether the user presses `yes` rather than Cancel, which is the default."""
    return ask_choice(parent, title, question, yes) == yes


def ask_choice(parent: QWidget, title: str, question: str, *choices: str) -> str:
    """The button that the user presses; empty for Cancel, which is the default."""
    box = QMessageBox(QMessageBox.Icon.Question, title, question, QMessageBox.StandardButton.Cancel, parent)
    box.setTextFormat(Qt.TextFormat.PlainText)
    buttons = {text: box.addButton(text, QMessageBox.ButtonRole.AcceptRole) for text in choices}
    box.setDefaultButton(QMessageBox.StandardButton.Cancel)
    box.exec()
    pressed = next((text for text, made in buttons.items() if box.clickedButton() is made), "")
    box.deleteLater()
    return pressed
