"""Keeps what lies on the canvas in step with camera, slide and brush, and goes where the user says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QApplication

from napari_sparseseg.errors import SlideError
from napari_sparseseg.files import result_name
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.host import canvas_beside
from napari_sparseseg.gui.layers.lazy_labels import PIXEL_CENTRE
from napari_sparseseg.gui.layers.napari_compat import show_whole
from napari_sparseseg.gui.layers.slide_layers import slide_name
from napari_sparseseg.gui.reader import rendered
from napari_sparseseg.gui.say import add_place, remove_place, say
from napari_sparseseg.gui.view.canvas import MARGIN, Note, OverviewMap, ScaleBar, ViewBar
from napari_sparseseg.gui.view.places import Pictures, PointDialog
from napari_sparseseg.gui.view.scale import length_text, magnification, scale_bar, zoom_of
from napari_sparseseg.gui.view.snapshot import save_legend, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from qtpy.QtWidgets import QWidget

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.slides import Slide

LEAST_NOTE_PX = 200
MAP_PX = 160
"""Longer side of the overview map."""
DRAWING = ("paint", "erase")


def thumbnail(slide: Slide) -> np.ndarray | None:
    """What the overview map shows, uint8 (h, w, 3); None where the slide was closed meanwhile."""
    try:
        return rendered(slide, MAP_PX)
    except SlideError:
        if slide.closed:
            return None
        raise


class ViewActions(QObject):
    """Connects scale bar, overview map and view bar with the viewer.

    Parameters
    ----------
    context
        Session and viewer.
    panel
        The panel; its window's canvas is where everything is shown.
    slides
        Which slide is active.
    """

    def __init__(self, context: Context, panel: QWidget, slides: SlideActions) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides = context, panel, slides
        self._canvas: QWidget | None = None
        self._slide: Slide | None = None
        self._layer: Any = None
        self.bar = ViewBar(panel)
        self.scale_bar = ScaleBar(panel)
        self.map = OverviewMap(panel)
        self.note = Note(panel)
        self.bar.objective_chosen.connect(self.magnify)
        self.bar.fit_requested.connect(self.fit)
        self.map.chosen.connect(self._on_map)
        self._map_wanted = self._add("Overview map", "Show the whole slide, small, while a part is in view", None)
        self._bar_wanted = self._add("Scale bar", "Show the scale bar", None)
        self._add("Go to coordinates…", "Centre the view on a point of the slide", self.go_to)
        self._add("Snapshot…", "Save what is on screen with scale bar and class legend", self._on_snapshot)
        self._add("Legend…", "Save the classes and their colours as a picture", self._on_legend)
        self._add("Label and thumbnail…", "Pictures in the file; a label may name a patient", self._on_pictures)
        self._camera = context.viewer.scene.camera
        self._camera.events.zoom.connect(self._on_camera)
        self._camera.events.center.connect(self._on_camera)
        self._napari_bar = context.viewer.canvas.overlays["scale_bar"]
        self._napari_bar.events.visible.connect(self._on_napari_bar)
        context.viewer.layers.selection.events.active.connect(self._on_brush)
        context.slides_changed.connect(self._on_resolution)
        slides.binding_changed.connect(self._on_binding)

    def _add(self, text: str, tip: str, triggered: Callable[[], object] | None) -> Any:
        """Add an entry to the menu of the bar; without `triggered`, one that is ticked or not."""
        action = self.bar.menu.addAction(text)
        action.setToolTip(tip)
        if triggered is None:
            action.setCheckable(True)
            action.setChecked(True)
            action.toggled.connect(lambda _: self._on_camera())
        else:
            action.triggered.connect(lambda _=False: triggered())
        return action

    def watch(self) -> None:
        """Lie on the canvas of the window that the panel is in now."""
        canvas = canvas_beside(self._panel)
        if canvas is None or canvas is self._canvas:
            return
        self._leave()
        self._canvas = canvas
        canvas.installEventFilter(self)
        for widget in (self.bar, self.scale_bar, self.map, self.note):
            widget.setParent(canvas)
        add_place(self._say)
        self._on_camera()

    def close(self) -> None:
        """Leave the canvas and disconnect from the viewer."""
        self._camera.events.zoom.disconnect(self._on_camera)
        self._camera.events.center.disconnect(self._on_camera)
        self._napari_bar.events.visible.disconnect(self._on_napari_bar)
        self._context.viewer.layers.selection.events.active.disconnect(self._on_brush)
        self._follow_brush(None)
        self._leave()
        for widget in (self.bar, self.scale_bar, self.map, self.note):
            widget.hide()
            widget.setParent(self._panel)

    def _leave(self) -> None:
        if self._canvas is not None:
            self._canvas.removeEventFilter(self)
        remove_place(self._say)
        self._canvas = None

    def _say(self, text: str) -> bool:
        """Show a sentence if this window is the active one and has room for it."""
        canvas, active = self._canvas, QApplication.activeWindow()
        if canvas is None or canvas.width() < LEAST_NOTE_PX or active not in (None, canvas.window()):
            return False
        beside_map = canvas.width() - 3 * MARGIN - (self.map.width() if self.map.isVisible() else 0)
        self.note.show_text(text, max(LEAST_NOTE_PX - 2 * MARGIN, beside_map))
        self.note.move(MARGIN, MARGIN)
        return True

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Stay in the corners."""
        if event is not None and event.type() == QEvent.Type.Resize:
            self._on_camera()
        return False

    # Where to look

    def magnify(self, objective: float) -> None:
        """Show the active slide as large as an objective does; the centre of the view stays."""
        mpp = self._mpp
        if mpp is not None:
            self._camera.zoom = zoom_of(mpp, objective)

    def fit(self) -> None:
        """Show the whole active slide."""
        if self._slide is not None:
            show_whole(self._context.viewer, self._slide.shape)

    def centre(self, y: float, x: float) -> None:
        """Centre the view on a level-0 point."""
        self._camera.center = (0.0, y - PIXEL_CENTRE, x - PIXEL_CENTRE)

    def look_at(
        self, box: tuple[float, float, float, float], shares: tuple[float, float, float], largest: float
    ) -> None:
        """Centre the view on a level-0 box (y, x, height, width); zoom where it would be too small or too large.

        Parameters
        ----------
        box
            What to look at.
        shares
            Of the view: below the first the box is too small, beyond the last too large; it then takes the second.
        largest
            Screen pixels per level-0 pixel, at most.
        """
        y, x, h, w = box
        high, wide = self._context.viewer.canvas.size
        least, good, most = shares
        whole = min(high / max(h, 1.0), wide / max(w, 1.0))  # the zoom at which the box fills the view
        if not least <= float(self._camera.zoom) / whole <= most:
            self._camera.zoom = min(largest, good * whole)
        self.centre(y + h / 2, x + w / 2)

    def go_to(self) -> None:
        """Ask for a point and centre the view on it."""
        slide = self._slide
        if slide is None:
            return
        _, y, x = self._camera.center
        dialog = PointDialog(self._panel, (float(y) + PIXEL_CENTRE, float(x) + PIXEL_CENTRE), slide.shape, slide.mpp)
        chosen = dialog.ask()
        if chosen is not None:
            self.centre(*chosen)

    def _on_snapshot(self) -> None:
        slide = self._slide
        if slide is None:
            return
        suggestion = str(Path(slide.path).with_name(f"{result_name(Path(slide.path))}-view.png"))
        path = dialogs.ask_save(self._panel, "Save a snapshot", suggestion, "Picture (*.png)")
        if path and self._context.attempt(lambda: snapshot(self._context.viewer, path)):
            say(f"Saved {path}")

    def _on_legend(self) -> None:
        kinds = "Picture (*.png);;Drawing (*.svg)"
        path = dialogs.ask_save(self._panel, "Save the legend", "legend.png", kinds)
        if path and self._context.attempt(lambda: save_legend(self._context.session.classes, path)):
            say(f"Saved {path}")

    def _on_pictures(self) -> None:
        slide = self._slide
        if slide is None:
            return
        if not slide.associated:
            self._context.problem.emit(f"{slide_name(slide)} contains no label, macro or thumbnail.", "")
            return
        self._context.in_background(
            lambda: {name: slide.read_associated(name) for name in slide.associated},
            lambda pictures: Pictures(self._panel, slide_name(slide), pictures).show(),
            name="Reading label and thumbnail",
        )

    def _on_map(self, y: float, x: float) -> None:
        if self._slide is not None:
            height, width = self._slide.shape
            self.centre(y * height, x * width)

    # What is shown

    @property
    def _mpp(self) -> float | None:
        """Micrometres per level-0 pixel from left to right."""
        return None if self._slide is None or self._slide.mpp is None else self._slide.mpp[1]

    def _on_binding(self) -> None:
        binding = self._slides.binding
        slide = None if binding is None else binding.entry.slide
        self._follow_brush(None if binding is None else binding.scribbles.layer)
        if slide is not self._slide:
            self._slide = slide
            self.map.show_slide(None)
            if slide is not None:
                # 50 ms and more on a slow share
                self._context.jobs.run(lambda: thumbnail(slide), lambda pixels: self._on_thumbnail(slide, pixels))
        self._on_camera()

    def _on_resolution(self) -> None:
        self._on_camera()

    def _on_thumbnail(self, slide: Slide, pixels: np.ndarray | None) -> None:
        if pixels is not None and slide is self._slide and not self._context.closed:
            self.map.show_slide(pixels)
            self._on_camera()

    def _on_napari_bar(self) -> None:
        """View > Scale Bar shows and hides ours: napari's would count pixels."""
        if self._napari_bar.visible and self._slide is not None:
            self._napari_bar.visible = False
            self._bar_wanted.toggle()

    def _on_camera(self, event: Any = None) -> None:
        slide, canvas = self._slide, self._canvas
        if slide is None or canvas is None:
            for widget in (self.bar, self.scale_bar, self.map):
                widget.hide()
            return
        zoom, mpp = float(self._camera.zoom), self._mpp
        self.scale_bar.show_bar(scale_bar(zoom, mpp))
        self.bar.show_zoom(zoom, None if mpp is None else magnification(mpp, zoom))
        self._on_brush()
        shares = self._in_view(slide, canvas)
        self.map.show_view(*shares)
        partly = shares[0] > 0 or shares[1] > 0 or shares[0] + shares[2] < 1 or shares[1] + shares[3] < 1
        self.scale_bar.setVisible(self._bar_wanted.isChecked())
        roomy = canvas.width() > 2 * MAP_PX
        self.map.setVisible(self._map_wanted.isChecked() and self.map.has_slide and partly and roomy)
        self.bar.show()
        self._place()

    def _in_view(self, slide: Slide, canvas: QWidget) -> tuple[float, float, float, float]:
        """(y, x, height, width) of what the canvas shows, as shares of the slide."""
        (height, width), zoom = slide.shape, float(self._camera.zoom)
        y, x = (float(c) + PIXEL_CENTRE for c in self._camera.center[-2:])
        h, w = canvas.height() / zoom, canvas.width() / zoom
        return (y - h / 2) / height, (x - w / 2) / width, h / height, w / width

    def _place(self) -> None:
        canvas = self._canvas
        if canvas is None:
            return
        self.bar.fit_into(canvas.width())
        right, bottom = canvas.width() - MARGIN, canvas.height() - MARGIN
        self.bar.move(right - self.bar.width(), bottom - self.bar.height())
        above = self.bar.x() < self.scale_bar.width() + 2 * MARGIN  # a narrow canvas has no room for both
        self.scale_bar.move(MARGIN, bottom - self.scale_bar.height() - above * (self.bar.height() + MARGIN))
        self.map.move(right - self.map.width(), MARGIN)

    # The brush

    def _follow_brush(self, layer: Any) -> None:
        if self._layer is not None:
            self._layer.events.brush_size.disconnect(self._on_brush)
            self._layer.events.mode.disconnect(self._on_brush)
        self._layer = layer
        if layer is not None:
            layer.events.brush_size.connect(self._on_brush)
            layer.events.mode.connect(self._on_brush)

    def _on_brush(self, event: Any = None) -> None:
        layer, mpp = self._layer, self._mpp
        # ==, because napari gives plugins a proxy of the active layer
        drawing = layer is not None and str(layer.mode) in DRAWING
        if not drawing or self._context.viewer.layers.selection.active != layer:
            self.bar.show_brush("")
        else:
            size = layer.brush_size / float(self._camera.zoom)  # the layer may hear of the zoom after us
            said = f"{size:.3g} px" if mpp is None else length_text(size * mpp)
            self.bar.show_brush(f"Brush {said}")
        self._place()
