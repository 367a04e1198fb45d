"""Guidance: the next uncertain region, and mistakes on held-out strokes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

if TYPE_CHECKING:
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.view.marking import RegionMarker
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.review import Mistake


class GuidanceActions(QObject):
    """Connects the guidance buttons of the Predict section, the camera and the session."""

    def __init__(
        self,
        context: Context,
        panel: PredictPanel,
        slides: SlideActions,
        marker: RegionMarker,
    ) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._marker = context, panel, slides, marker
        self._reviewed: list[Mistake] = []
        panel.next_requested.connect(self.go_to_next)
        panel.review_requested.connect(self.review)
        context.session_replaced.connect(self._reviewed.clear)

    def go_to_next(self) -> None:
        """Find the most uncertain unlabelled region and go there."""
        session = self._context.session
        self._context.in_background(session.next_region, self._on_suggestion, name="Searching for an uncertain region")

    def review(self) -> None:
        """Go to the worst held-out stroke not visited yet in this round."""
        session = self._context.session
        self._context.in_background(session.review, self._on_mistakes, name="Reviewing held-out strokes")

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
            f"{mistake.share * 100:.0f} % of the stroke is predicted as {self._name(mistake.predicted)}."
        )

    def _show_slide(self, mistake: Mistake) -> None:
        session, entry = self._context.session, self._context.entry
        if mistake.slide in session.slides and (entry is None or entry.slide is not mistake.slide):
            session.activate(mistake.slide)
            self._slides.sync()

    def _name(self, class_id: int) -> str:
        names = {c.id: c.name for c in self._context.session.classes}
        return names.get(class_id, str(class_id))


def _same_stroke(a: Mistake, b: Mistake) -> bool:
    """Whether both are most probably the same stroke; the model may have changed in between."""
    return a.slide is b.slide and a.truth == b.truth and a.box.intersection(b.box).area > 0
