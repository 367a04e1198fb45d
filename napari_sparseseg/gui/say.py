"""A sentence about what the user has just done: on the slide they look at, whole.

napari's notifications show one line of it, cut off, in a corner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.utils.notifications import show_info

if TYPE_CHECKING:
    from collections.abc import Callable

_places: list[Callable[[str], bool]] = []


def say(text: str) -> None:
    """Show a sentence on the canvas of the active window, or as a notification where no panel is. GUI thread only."""
    if not any(place(text) for place in _places):
        show_info(text)


def add_place(place: Callable[[str], bool]) -> None:
    """Add something that shows a sentence, and returns whether it did."""
    _places.append(place)


def remove_place(place: Callable[[str], bool]) -> None:
    """Undo `add_place`; safe to call twice."""
    if place in _places:
        _places.remove(place)
