"""What the panel's buttons do as commands: for napari's command palette, its menus and its shortcut editor.

Every command presses the button that a mouse would, so that neither can do what the other cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import napari
from napari.components.viewer_model import ViewerModel
from napari.settings import get_settings
from napari.utils.action_manager import action_manager
from napari.utils.interactions import Shortcut
from napari.utils.notifications import show_info

from napari_sparseseg.gui.widgets import plain_tip

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtWidgets import QAbstractButton

    from napari_sparseseg.gui.widget import SparseSegWidget

PLUGIN = "napari-sparseseg"
WHY = "why"
"""Property of a button: its tooltip without the keys."""
BUTTONS: dict[str, Callable[[SparseSegWidget], QAbstractButton]] = {
    "train": lambda p: p.train.train,
    "stop": lambda p: p.train.stop,
    "next_region": lambda p: p.predict.next,
    "review": lambda p: p.predict.review,
    "accept_regions": lambda p: p.predict.accept,
    "toggle_live": lambda p: p.predict.live,
    "toggle_outlines": lambda p: p.predict.contour,
    "predict_slide": lambda p: p.predict.predict_slide,
    "add_class": lambda p: p.classes.add,
    "open_slide": lambda p: p.slide.open,
}


def panel() -> SparseSegWidget:
    """The panel of the window in front; opened where it is not."""
    viewer = napari.current_viewer()
    if viewer is None:
        raise RuntimeError("no napari window is open.")
    widget: SparseSegWidget = viewer.window.add_plugin_dock_widget(PLUGIN)[1]
    return widget


def train() -> None:
    """Train, or pause or resume it."""
    _press("train")


def stop() -> None:
    """End training and write the model."""
    _press("stop")


def next_region() -> None:
    """Go where the model is least sure."""
    _press("next_region")


def review() -> None:
    """Go to the held-out strokes that the model gets wrong."""
    _press("review")


def accept_regions() -> None:
    """Clicks accept regions of the prediction, or draw again."""
    _press("accept_regions")


def toggle_live() -> None:
    """Switch the live prediction on or off."""
    _press("toggle_live")


def toggle_outlines() -> None:
    """Borders of the prediction, or its areas."""
    _press("toggle_outlines")


def predict_slide() -> None:
    """The whole slide into a file."""
    _press("predict_slide")


def add_class() -> None:
    """One more class."""
    _press("add_class")


def open_slide() -> None:
    """Choose slide files."""
    _press("open_slide")


def save_project() -> None:
    """Slides, scribbles, settings and model in one folder."""
    _choose("Save project…")


def open_project() -> None:
    """Go on where a project was left."""
    _choose("Open project…")


def copy_as_python() -> None:
    """A script of what was done."""
    _choose("Copy as Python")


def copy_as_command() -> None:
    """Shell commands of what was done."""
    _choose("Copy as command")


def show_help() -> None:
    """The documentation."""
    _choose("Help")


SHORTCUTS: dict[str, tuple[Callable[[], None], str, str]] = {
    "train": (train, "Train, pause or resume", "Shift+T"),
    "next_region": (next_region, "Go to the next doubtful region", "Shift+N"),
    "review": (review, "Go to the next held-out stroke that is wrong", "Shift+R"),
    "accept_regions": (accept_regions, "Accept clicked regions as annotations", "Shift+G"),
    "toggle_live": (toggle_live, "Switch live prediction on or off", "Shift+D"),
    "toggle_outlines": (toggle_outlines, "Show the prediction as outlines or areas", "Shift+O"),
}
"""What one does often while looking at the slide: command, description and key to begin with."""


def register_shortcuts() -> None:
    """Put the shortcuts into napari's editor (Preferences > Shortcuts, viewer); keys chosen there stay."""
    chosen = get_settings().shortcuts.shortcuts
    for name, (command, description, key) in SHORTCUTS.items():
        action = f"{PLUGIN}:{name}"
        action_manager.register_action(action, _on_key(command), f"Sparse segmentation: {description}", ViewerModel)
        for chosen_key in chosen.get(action, [key]):
            action_manager.bind_shortcut(action, chosen_key)


def show_keys(panel: SparseSegWidget) -> None:
    """Say in the tooltips of the buttons which keys press them now."""
    chosen = get_settings().shortcuts.shortcuts
    for name, (_, _, key) in SHORTCUTS.items():
        button = BUTTONS[name](panel)
        why = button.property(WHY) or button.toolTip()
        button.setProperty(WHY, why)
        keys = " or ".join(Shortcut(k).qt for k in chosen.get(f"{PLUGIN}:{name}", [key]))
        button.setToolTip(plain_tip(f"{why}\nKey: {keys}" if keys else why))


def _on_key(command: Callable[[], None]) -> Callable[[Any], None]:
    def run(viewer: Any) -> None:
        command()

    return run


def _press(name: str) -> None:
    opened = panel()
    button = BUTTONS[name](opened)
    if button.isEnabled():
        button.click()
    else:
        reason = opened.header.next_step.text() or opened.header.state.text()
        show_info(f"{button.text()} is not possible now. {reason}")


def _choose(text: str) -> None:
    next(a for a in panel().header.menu.actions() if a.text() == text).trigger()
