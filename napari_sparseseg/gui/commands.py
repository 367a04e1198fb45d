"""The panel's buttons as commands, for napari's command palette, menus and shortcut editor.

Every command presses the button itself, so that both always do the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import napari
from napari.components.viewer_model import ViewerModel
from napari.settings import get_settings
from napari.utils.action_manager import action_manager
from napari.utils.interactions import Shortcut

from napari_sparseseg.gui.say import say
from napari_sparseseg.gui.widgets import plain_tip

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtWidgets import QAbstractButton, QMenu, QWidget

    from napari_sparseseg.gui.panel import Panel
    from napari_sparseseg.gui.widget import SparseSegWidget

PLUGIN = "napari-sparseseg"
WHY = "why"
"""Property of a button: its tooltip without the shortcut."""
BUTTONS: dict[str, Callable[[SparseSegWidget | Panel], QAbstractButton]] = {
    "train": lambda p: p.train.train,
    "stop": lambda p: p.train.stop,
    "next_region": lambda p: p.predict.next,
    "review": lambda p: p.predict.review,
    "accept_regions": lambda p: p.predict.accept,
    "toggle_live": lambda p: p.predict.live,
    "toggle_outlines": lambda p: p.predict.contour,
    "predict_slide": lambda p: p.predict.predict_slide,
    "list_runs": lambda p: p.train.runs,
    "undo_training": lambda p: p.train.undo,
    "add_class": lambda p: p.classes.add,
    "list_annotations": lambda p: p.classes.list,
    "open_slide": lambda p: p.slide.open,
    "toggle_prediction": lambda p: p.predict.hide_prediction,
    "view_5x": lambda p: p.view.bar.objectives[5],
    "view_10x": lambda p: p.view.bar.objectives[10],
    "view_20x": lambda p: p.view.bar.objectives[20],
    "view_40x": lambda p: p.view.bar.objectives[40],
    "view_fit": lambda p: p.view.bar.fit,
}


def panel() -> SparseSegWidget:
    """The panel of the current window, opened if necessary."""
    viewer = napari.current_viewer()
    if viewer is None:
        raise RuntimeError("no napari window is open.")
    # the manifest's display name is the package's, so that this finds a panel opened from the menu, and vice versa
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN)
    dock.show()
    found: SparseSegWidget = widget
    return found


def train() -> None:
    """Train, or pause or resume it."""
    _press("train")


def stop() -> None:
    """End training and save the model."""
    _press("stop")


def next_region() -> None:
    """Go to the next uncertain region."""
    _press("next_region")


def review() -> None:
    """Go to the next mistake on a held-out stroke."""
    _press("review")


def accept_regions() -> None:
    """Switch accepting regions on or off."""
    _press("accept_regions")


def toggle_live() -> None:
    """Switch live prediction on or off."""
    _press("toggle_live")


def toggle_outlines() -> None:
    """Show the prediction as outlines or filled."""
    _press("toggle_outlines")


def toggle_prediction() -> None:
    """Hide or show the prediction."""
    _press("toggle_prediction")


def step_opacity() -> None:
    """Give the prediction the next opacity."""
    opened = panel()
    opened.when_complete(lambda: opened.prediction.step_opacity())


def view_5x() -> None:
    """Show the slide as an objective of 5x does."""
    _press("view_5x")


def view_10x() -> None:
    """Show the slide as an objective of 10x does."""
    _press("view_10x")


def view_20x() -> None:
    """Show the slide as an objective of 20x does."""
    _press("view_20x")


def view_40x() -> None:
    """Show the slide as an objective of 40x does."""
    _press("view_40x")


def view_fit() -> None:
    """Show the whole slide."""
    _press("view_fit")


def go_to() -> None:
    """Go to coordinates."""
    _choose_view("Go to coordinates…")


def save_snapshot() -> None:
    """Save what is on screen with scale bar and class legend."""
    _choose_view("Snapshot…")


def slide_pictures() -> None:
    """Show label and thumbnail of the slide."""
    _choose_view("Label and thumbnail…")


def predict_slide() -> None:
    """Predict the whole slide into a file."""
    _press("predict_slide")


def results() -> None:
    """Show objects and areas of the predicted slide, or open a result."""
    _choose("Results…")


def add_class() -> None:
    """Add a class."""
    _press("add_class")


def list_annotations() -> None:
    """List the annotations of the slide."""
    _press("list_annotations")


def list_runs() -> None:
    """List the training runs."""
    _press("list_runs")


def undo_training() -> None:
    """Go back to the model of before the last training run."""
    _press("undo_training")


def open_slide() -> None:
    """Choose slide files."""
    _press("open_slide")


def save_project() -> None:
    """Save a project."""
    _choose("Save project…")


def open_project() -> None:
    """Open a project."""
    _choose("Open project…")


def copy_as_python() -> None:
    """Copy a Python script of this training."""
    _choose("Copy as Python")


def copy_as_command() -> None:
    """Copy shell commands of this training."""
    _choose("Copy as command")


def show_help() -> None:
    """Show the documentation."""
    _choose("Help")


SHORTCUTS: dict[str, tuple[Callable[[], None], str, str]] = {
    "train": (train, "Train, pause or resume", "Shift+T"),
    "next_region": (next_region, "Go to the next uncertain region", "Shift+N"),
    "review": (review, "Go to the next mistake on a held-out stroke", "Shift+R"),
    "list_annotations": (list_annotations, "List the annotations of the slide", "Shift+S"),
    "accept_regions": (accept_regions, "Accept clicked regions as annotations", "Shift+G"),
    "toggle_live": (toggle_live, "Switch live prediction on or off", "Shift+D"),
    "toggle_outlines": (toggle_outlines, "Show the prediction as outlines or filled", "Shift+O"),
    "toggle_prediction": (toggle_prediction, "Hide or show the prediction", "H"),
    "step_opacity": (step_opacity, "Next opacity of the prediction", "Shift+H"),
    "view_5x": (view_5x, "Magnification 5×", "Ctrl+1"),
    "view_10x": (view_10x, "Magnification 10×", "Ctrl+2"),
    "view_20x": (view_20x, "Magnification 20×", "Ctrl+3"),
    "view_40x": (view_40x, "Magnification 40×", "Ctrl+4"),
}
"""Frequent commands: function, description and default key. The whole slide has napari's own key, Ctrl+0."""
TIPS: dict[str, Callable[[SparseSegWidget | Panel], QWidget]] = {**BUTTONS, "step_opacity": lambda p: p.predict.opacity}
"""Whose tooltip names the key of a command."""


def register_shortcuts() -> None:
    """Add the shortcuts to napari's editor (Preferences > Shortcuts, viewer); keys chosen there take precedence."""
    chosen = get_settings().shortcuts.shortcuts
    for name, (command, description, key) in SHORTCUTS.items():
        action = f"{PLUGIN}:{name}"
        action_manager.register_action(action, _on_key(command), f"Sparse segmentation: {description}", ViewerModel)
        for chosen_key in chosen.get(action, [key]):
            action_manager.bind_shortcut(action, chosen_key)


def show_keys(panel: SparseSegWidget | Panel) -> None:
    """Add the current shortcuts to the tooltips of the buttons."""
    chosen = get_settings().shortcuts.shortcuts
    for name, (_, _, key) in SHORTCUTS.items():
        widget = TIPS[name](panel)
        why = widget.property(WHY) or widget.toolTip()
        widget.setProperty(WHY, why)
        keys = " or ".join(Shortcut(k).qt for k in chosen.get(f"{PLUGIN}:{name}", [key]))
        widget.setToolTip(plain_tip(f"{why}\nKey: {keys}" if keys else why))


def _on_key(command: Callable[[], None]) -> Callable[[Any], None]:
    def run(viewer: Any) -> None:
        command()

    return run


def _press(name: str) -> None:
    opened = panel()
    opened.when_complete(lambda: _click(opened, name))


def _click(opened: SparseSegWidget, name: str) -> None:
    button = BUTTONS[name](opened)
    if button.isEnabled():
        button.click()
    else:
        reason = opened.header.next_step.text() or opened.header.state.text()
        say(f"{button.text()} is not available now. {reason}")


def _choose(text: str) -> None:
    opened = panel()
    opened.when_complete(lambda: _trigger(opened.header.menu, text))


def _choose_view(text: str) -> None:
    opened = panel()
    opened.when_complete(lambda: _choose_place(opened, text))


def _choose_place(opened: SparseSegWidget, text: str) -> None:
    if opened.session.entry is None:
        say(f"{text} is not available now. {opened.header.next_step.text()}")
    else:
        _trigger(opened.view.bar.menu, text)


def _trigger(menu: QMenu, text: str) -> None:
    next(a for a in menu.actions() if a.text() == text).trigger()
