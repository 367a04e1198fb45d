"""Keeps the live view of the active slide in step with slide, model and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psygnal import Signal

from napari_sparseseg.prediction.live_view import LiveView

if TYPE_CHECKING:
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Box, Frame
    from napari_sparseseg.session.slides import SlideSet
    from napari_sparseseg.session.training import LearningLoop
    from napari_sparseseg.slides import Slide

KEPT_BYTES = 256 << 20
"""Tiles of slides that were active before, so that they are there at once when the user comes back."""


class LiveWorker:
    """Predicts what is on screen, one tile a turn; engine thread, but for `look_at`.

    Attributes
    ----------
    changed
        Signal (): `view` is another object now; layers must be made anew.
    """

    changed = Signal()

    def __init__(self, slides: SlideSet, loop: LearningLoop) -> None:
        self._slides, self._loop = slides, loop
        self._made_for: tuple[object, ...] = ()
        self._kept: dict[tuple[object, ...], LiveView] = {}
        self._looking_at: tuple[str, Box, float] | None = None
        self.view: LiveView | None = None
        self.enabled = False
        self.held = False

    def look_at(self, box: Box, pixel_size: float) -> None:
        """Say what part of the active slide is on screen; kept until the slide changes. Any thread."""
        entry = self._slides.current
        if entry is not None:
            self._looking_at = (entry.key, box, pixel_size)
            if self.view is not None and self._made_for[0] == entry.key:
                self.view.request(box, pixel_size)

    def work(self) -> bool:
        """Predict the next tile that the view wants; False when there is none."""
        model = self._loop.model
        entry = self._slides.current
        if not self.enabled or self.held or model is None or entry is None:
            return False
        frame = entry.slide.frame(model.metadata.mpp)
        wanted = (entry.key, frame, model.metadata.classes)
        if wanted != self._made_for or self.view is None:
            self.view = self._view_of(entry.slide, wanted)
            self._made_for = wanted
            if self._looking_at is not None and self._looking_at[0] == entry.key:
                self.view.request(*self._looking_at[1:])
            self.changed.emit()
        seen = dict(self._loop.seen).get(entry.key, 0)
        return self.view.work(model, self._loop.status.model_version, seen)

    def _view_of(self, slide: Slide, wanted: tuple[str, Frame, tuple[ClassDef, ...]]) -> LiveView:
        """The slide's view from before, or a new one; those of slides, classes or resolutions that are gone go."""
        _, frame, classes = wanted
        found = self._kept.pop(wanted, None)
        slides = [e.slide for e in self._slides.entries]
        room = KEPT_BYTES
        for key, view in reversed(list(self._kept.items())):
            room -= view.store.nbytes
            if room < 0 or key[0] == wanted[0] or key[2] != classes or not any(view.slide is s for s in slides):
                del self._kept[key]
        if found is None or found.slide is not slide:
            found = LiveView(slide, frame, len(classes))
        self._kept[wanted] = found
        return found
