"""What a clean-up would make of the prediction on screen, shown in its place, before the slide is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.napari_compat import view_box

if TYPE_CHECKING:
    from napari_sparseseg import CleanUp
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.prediction import LiveDisplay
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.prediction.results.preview import CleanedView

AGAIN_MS = 250
"""The preview is made anew after the view, the tiles or the settings have not changed for this long."""


class CleanPreview(QObject):
    """Shows the cleaned prediction in place of the prediction, in the same layer, as long as it has settings.

    Parameters
    ----------
    context
        Session and viewer.
    slides
        Which slide is active.
    display
        The prediction.
    """

    def __init__(self, context: Context, slides: SlideActions, display: LiveDisplay) -> None:
        super().__init__(context)
        self._context, self._slides, self._display = context, slides, display
        self._settings: CleanUp | None = None
        self._asked = 0
        self._timer = single_shot(self, AGAIN_MS, self._make)
        display.refreshed.connect(self._later)
        slides.binding_changed.connect(self._on_binding)

    def show(self, settings: CleanUp | None) -> None:
        """Preview these settings; None shows the prediction again."""
        self._settings = settings
        if settings is None:
            self._drop()
        else:
            self._timer.start()

    def close(self) -> None:
        """Show the prediction again."""
        self.show(None)

    def _drop(self) -> None:
        self._timer.stop()
        self._display.show_instead(None)

    def _later(self) -> None:
        if self._settings is not None:
            self._timer.start()

    def _on_binding(self) -> None:
        self._drop()
        self._later()

    def _make(self) -> None:
        session, settings, binding = self._context.session, self._settings, self._slides.binding
        live, model = session.live, session.model
        if settings is None or binding is None or live is None or model is None:
            return
        if live.slide is not binding.entry.slide:
            return
        self._asked += 1
        asked, box, known = self._asked, view_box(self._context.viewer)[0], {c.id: c for c in session.classes}
        classes = tuple(known.get(c.id, c) for c in model.metadata.classes)

        def show(made: CleanedView | None) -> None:
            if asked == self._asked and self._settings is not None and live is session.live and made is not None:
                self._display.show_instead(made)

        self._context.jobs.run(lambda: session.results.preview_clean_up(live, box, settings, classes), show)
