"""Guidance: the next uncertain region, mistakes on held-out strokes, and regions to accept with a click."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.layers import Layer

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.prediction import LiveDisplay
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.view.marking import RegionMarker
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.review import Mistake

CLICK_PX = 4.0
"""Screen pixels that the mouse may move during a click."""


class GuidanceActions(QObject):
    """Connects the guidance buttons of the Predict section, the camera and the session."""

    def __init__(
        self,
        context: Context,
        panel: PredictPanel,
        slides: SlideActions,
        display: LiveDisplay,
        marker: RegionMarker,
    ) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._display = context, panel, slides, display
        self._marker = marker
        self._reviewed: list[Mistake] = []
        self._armed: Layer | None = None
        panel.next_requested.connect(self.go_to_next)
        panel.review_requested.connect(self.review)
        panel.accept_toggled.connect(self._on_accept)
        display.shown_changed.connect(self._on_shown)
        context.session_replaced.connect(self._reviewed.clear)
        context.viewer.layers.selection.events.active.connect(self._on_active)

    def go_to_next(self) -> None:
        """Find the most uncertain unlabelled region and go there."""
        session = self._context.session
        self._context.in_background(session.next_region, self._on_suggestion, name="Searching for an uncertain region")

    def review(self) -> None:
        """Go to the worst held-out stroke not visited yet in this round."""
        session = self._context.session
        self._context.in_background(session.review, self._on_mistakes, name="Reviewing held-out strokes")

    def close(self) -> None:
        """Disconnect from the viewer."""
        self._disarm()
        self._context.viewer.layers.selection.events.active.disconnect(self._on_active)

    def _on_suggestion(self, suggestion: Suggestion | None) -> None:
        if suggestion is None:
            self._panel.show_doubt("All tissue on this slide is labelled.")
            return
        self._marker.go_to(suggestion.box, suggestion.centre)
        first, second = (self._name(i) for i in suggestion.classes)
        self._panel.show_doubt(f"The model is uncertain between {first} and {second}. Label this region.")

    def _on_mistakes(self, found: list[Mistake]) -> None:
        if not found:
            self._panel.show_doubt("All held-out strokes are predicted correctly.")
            return
        left = [m for m in found if not any(_same_stroke(m, seen) for seen in self._reviewed)]
        if not left:
            self._reviewed.clear()
            left = found
        mistake = left[0]
        self._reviewed.append(mistake)
        self._show_slide(mistake)
        self._marker.go_to(mistake.box, mistake.centre)
        self._panel.show_doubt(
            f"Mistake {len(found) - len(left) + 1} of {len(found)}: labelled {self._name(mistake.truth)}, but "
            f"{mistake.share:.0%} of the stroke is predicted as {self._name(mistake.predicted)}."
        )

    def _show_slide(self, mistake: Mistake) -> None:
        session, entry = self._context.session, self._context.entry
        if mistake.slide in session.slides and (entry is None or entry.slide is not mistake.slide):
            session.activate(mistake.slide)
            self._slides.sync()

    def _name(self, class_id: int) -> str:
        names = {c.id: c.name for c in self._context.session.classes}
        return names.get(class_id, str(class_id))

    # Accepting regions

    def _on_accept(self, on: bool) -> None:
        if on:
            self._arm()
        else:
            self._disarm()

    def _arm(self) -> None:
        """Let clicks accept regions while the prediction layer is active; dragging still pans."""
        layer, layers = self._display.layer, self._context.viewer.layers
        if layer is None:
            self._panel.accept.setChecked(False)
            self._panel.show_doubt("There is no live prediction: switch it on first.")
            return
        layers.selection.active = layer  # emits "no active layer" first
        layer.mode = "pan_zoom"
        layer.mouse_drag_callbacks.append(self._on_press)
        self._armed = layer
        self._panel.show_doubt(
            "Click a region of the prediction to accept it. Press the button again to go back to drawing."
        )

    def _disarm(self) -> None:
        layer, self._armed = self._armed, None
        if layer is None:
            return
        layer.mouse_drag_callbacks.remove(self._on_press)
        layers = self._context.viewer.layers
        binding = self._slides.binding
        # ==, because napari gives plugins a proxy of the active layer
        if layers.selection.active == layer and binding is not None and not binding.scribbles.closed:
            layers.selection.active = binding.scribbles.layer
        self._panel.accept.setChecked(False)
        self._panel.show_doubt("")

    def _on_active(self) -> None:
        if self._armed is not None and self._context.viewer.layers.selection.active != self._armed:
            self._disarm()

    def _on_shown(self) -> None:
        if self._armed is not None and self._display.layer is not self._armed:
            self._disarm()

    def _on_press(self, layer: Layer, event: Any) -> Iterator[None]:
        start, at = event.pos, event.position[-2:]
        moved = event.button != 1
        yield
        while event.type == "mouse_move":
            moved = moved or math.dist(start, event.pos) > CLICK_PX
            yield
        if not moved:
            session, (y, x) = self._context.session, at
            point = float(y) + PIXEL_CENTRE, float(x) + PIXEL_CENTRE
            self._context.in_background(
                lambda: session.accept_region(point), self._on_accepted, name="Accepting a region"
            )

    def _on_accepted(self, found: Component) -> None:
        entry = self._context.entry
        mpp = None if entry is None else entry.slide.mpp
        size = f"{found.pixels:.3g} px" if mpp is None else f"{found.pixels * mpp[0] * mpp[1] * 1e-6:.3g} mm²"
        part = " The region continues: only the part around the click was added." if found.cut else ""
        self._panel.show_doubt(
            f"Added {size} of {self._name(found.class_id)} to the annotations.{part} Strokes inside take precedence; "
            "Ctrl+Z undoes this."
        )


def _same_stroke(a: Mistake, b: Mistake) -> bool:
    """Whether both are most probably the same stroke; the model may have changed in between."""
    return a.slide is b.slide and a.truth == b.truth and a.box.intersection(b.box).area > 0
