"""Guidance: the next doubtful region, the strokes that the model gets wrong, and regions to accept with a click."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.layers import Layer

    from napari_sparseseg.geometry import Box
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.prediction import LiveDisplay
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.review import Mistake

MARGIN = 2.0
"""A region is shown with this many times its side."""
LEAST_SIDE = 200
"""Level-0 pixels to show at least: a mistake may be a few pixels wide."""
CLICK_PX = 4.0
"""Screen pixels that the mouse may move between press and release of a click."""


class GuidanceActions(QObject):
    """Joins the guidance buttons of the Predict section, the camera and the session."""

    def __init__(self, context: Context, panel: PredictPanel, slides: SlideActions, display: LiveDisplay) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._display = context, panel, slides, display
        self._reviewed: list[Mistake] = []
        self._armed: Layer | None = None
        panel.next_requested.connect(self.go_to_next)
        panel.review_requested.connect(self.review)
        panel.accept_toggled.connect(self._on_accept)
        display.shown_changed.connect(self._on_shown)
        context.session_replaced.connect(self._reviewed.clear)
        context.viewer.layers.selection.events.active.connect(self._on_active)

    def go_to_next(self) -> None:
        """Find the most doubtful unlabelled region and go there."""
        session = self._context.session
        self._context.in_background(session.next_region, self._on_suggestion, name="Looking for a doubtful region")

    def review(self) -> None:
        """Go to the worst held-out stroke that was not visited yet in this round."""
        session = self._context.session
        self._context.in_background(session.review, self._on_mistakes, name="Reviewing held-out strokes")

    def close(self) -> None:
        """Let go of the viewer."""
        self._disarm()
        self._context.viewer.layers.selection.events.active.disconnect(self._on_active)

    def _on_suggestion(self, suggestion: Suggestion | None) -> None:
        if suggestion is None:
            self._panel.show_doubt("No unlabelled tissue is left on this slide.")
            return
        self._go_to(suggestion.box, suggestion.centre)
        first, second = (self._name(i) for i in suggestion.classes)
        self._panel.show_doubt(f"Here it wavers between {first} and {second}: draw a stroke of what it really is.")

    def _on_mistakes(self, found: list[Mistake]) -> None:
        if not found:
            self._panel.show_doubt("Every held-out stroke is predicted as it was drawn.")
            return
        left = [m for m in found if not any(_same_place(m, seen) for seen in self._reviewed)]
        if not left:
            self._reviewed.clear()
            left = found
        mistake = left[0]
        self._reviewed.append(mistake)
        self._show_slide(mistake)
        self._go_to(mistake.box, mistake.centre)
        self._panel.show_doubt(
            f"Labelled {self._name(mistake.truth)}, predicted {self._name(mistake.predicted)} in "
            f"{mistake.share:.0%}. {len(found) - len(left) + 1} of {len(found)} held-out strokes that are wrong."
        )

    def _show_slide(self, mistake: Mistake) -> None:
        slides = self._context.session.set
        entry = next((e for e in slides.entries if e.slide is mistake.slide), None)
        if entry is not None and entry is not self._context.entry:
            slides.activate(entry)
            self._slides.sync()

    def _go_to(self, box: Box, centre: tuple[float, float]) -> None:
        camera = self._context.viewer.scene.camera
        side = max(box.height, box.width, LEAST_SIDE) * MARGIN
        camera.zoom = min(self._context.viewer.canvas.size) / side
        camera.center = (0.0, *centre)

    def _name(self, class_id: int) -> str:
        names = {c.id: c.name for c in self._context.session.classes}
        return names.get(class_id, str(class_id))

    # accepting

    def _on_accept(self, on: bool) -> None:
        if on:
            self._arm()
        else:
            self._disarm()

    def _arm(self) -> None:
        """Clicks go to the prediction layer while it is the active one; dragging still pans."""
        layer, layers = self._display.layer, self._context.viewer.layers
        if layer is None:
            self._panel.accept.setChecked(False)
            self._panel.show_doubt("There is no live prediction to accept regions of; switch it on.")
            return
        layers.selection.active = layer  # which says on its way that there is no active layer
        layer.mode = "pan_zoom"
        layer.mouse_drag_callbacks.append(self._on_press)
        self._armed = layer
        self._panel.show_doubt("Click a region of the prediction to accept it. Press the button again to draw.")

    def _disarm(self) -> None:
        layer, self._armed = self._armed, None
        if layer is None:
            return
        layer.mouse_drag_callbacks.remove(self._on_press)
        layers = self._context.viewer.layers
        binding = self._slides.binding
        # compared with ==, because napari hands plugins a proxy of the active layer
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
        part = " It goes on beyond: only the part around the click was taken." if found.cut else ""
        self._panel.show_doubt(
            f"Accepted {size} of {self._name(found.class_id)}.{part} Strokes in it count more; Ctrl+Z takes it back."
        )


def _same_place(a: Mistake, b: Mistake) -> bool:
    """Whether both are the same stroke, most probably: the model may have changed between."""
    return a.slide is b.slide and a.truth == b.truth and a.box.intersection(b.box).area > 0
