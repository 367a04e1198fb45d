"""What the brush takes: its choice in the Classes section, its keys, and *Accept regions*, which is one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from napari_sparseseg.gui.layers.hover import Hover
from napari_sparseseg.gui.layers.napari_compat import view_box
from napari_sparseseg.gui.layers.tools import Bench, RegionTool, SnapBrush, SuperpixelTool, Tool
from napari_sparseseg.gui.say import say
from napari_sparseseg.gui.sections.classes.view import BRUSH, REGIONS, SNAP, SUPERPIXELS
from napari_sparseseg.session.clicks import Superpixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.scribbles import ScribbleLayer
    from napari_sparseseg.gui.sections.classes.view import ClassesPanel
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.session.slides import SlideEntry

KEYS = {"S": SNAP, "U": SUPERPIXELS}
HOW = (
    "Click a region of the prediction to accept it as predicted, or drag over several; with Shift they are taken back. "
    "Press Accept regions again to go back to drawing."
)


class ToolActions(QObject):
    """Gives the layer that is drawn on its tool, and the tool its preview."""

    def __init__(self, context: Context, panel: ClassesPanel, predict: PredictPanel, slides: SlideActions) -> None:
        super().__init__(context)
        self._context, self._panel, self._predict, self._slides = context, panel, predict, slides
        self._chosen = BRUSH
        self._amounts: dict[str, float] = {}
        self._layer: ScribbleLayer | None = None
        self._hover: Hover | None = None
        panel.tool_changed.connect(self.choose)
        panel.amount_changed.connect(self._on_amount)
        predict.accept_toggled.connect(lambda on: self.choose(REGIONS if on else BRUSH))
        slides.binding_changed.connect(self._on_binding)
        context.annotated.connect(self._on_binding)  # where the annotations, and so their layer, were replaced
        self._on_binding()

    def close(self) -> None:
        """Disconnect from the layer."""
        if self._hover is not None:
            self._hover.close()
        self._hover = None

    def choose(self, tool: str) -> None:
        """Draw with one of `TOOLS`."""
        if tool == REGIONS and self._context.session.live is None:
            self._predict.show_doubt("There is no live prediction: switch it on first.")
            say("There is no prediction to accept regions of yet. Train or load a model first.")
            tool = self._chosen if self._chosen != REGIONS else BRUSH
        if REGIONS in (tool, self._chosen):
            self._predict.show_doubt(HOW if tool == REGIONS else "")
        self._chosen = tool
        self._apply()
        if self._layer is not None and tool != BRUSH:
            if str(self._layer.mode) not in ("paint", "erase") or tool == REGIONS:
                self._layer.mode = "paint"
            self._context.viewer.layers.selection.active = self._layer

    def _toggle(self, tool: str) -> None:
        self.choose(BRUSH if self._chosen == tool else tool)

    def _on_binding(self) -> None:
        binding = self._slides.binding
        layer = None if binding is None or binding.scribbles.closed else binding.scribbles.layer
        if layer is self._layer:
            return
        self.close()
        self._layer = layer
        if layer is None or binding is None:
            return
        self._hover = Hover(self, layer, self._context.jobs.run)
        self._hover.amount_changed.connect(lambda _: self._show())
        for drawn_on in (layer, *binding.images):
            for key, tool in KEYS.items():
                drawn_on.bind_key(key, lambda _, tool=tool: self._toggle(tool), overwrite=True)
        if self._chosen == REGIONS:
            self._chosen = BRUSH
        self._apply()

    def _apply(self) -> None:
        layer, entry = self._layer, self._context.entry
        if layer is not None and entry is not None:
            layer.finish_stroke()
            self._keep_amount()
            layer.tool = self._made(entry)
            if layer.tool is not None:
                layer.tool.amount = self._amounts.get(self._chosen, layer.tool.amount)
        if self._hover is not None:
            self._hover.forget()
        self._show()

    def _made(self, entry: SlideEntry) -> Tool | None:
        bench = Bench(
            entry.slide,
            entry.annotations,
            live=lambda: self._context.session.live,
            view=lambda: view_box(self._context.viewer),
            run=self._context.jobs.run,
            fail=self._context.jobs.failed.emit,
        )
        if self._chosen == SNAP:
            return SnapBrush(bench)
        if self._chosen == SUPERPIXELS:
            return SuperpixelTool(bench, Superpixels(entry.slide))
        if self._chosen == REGIONS:
            clicks = self._context.session.clicks
            return RegionTool(bench, clicks, accept=self._accept, take_back=self._take_back)
        return None

    def _show(self) -> None:
        tool = None if self._layer is None else self._layer.tool
        self._keep_amount()
        least, most = (0.0, 0.0) if tool is None else tool.amounts
        self._panel.show_tool(self._chosen, (tool.amount - least) / (most - least) if tool and most > least else 0.0)
        accept = self._predict.accept
        accept.blockSignals(True)
        accept.setChecked(self._chosen == REGIONS)
        accept.blockSignals(False)

    def _keep_amount(self) -> None:
        tool = None if self._layer is None else self._layer.tool
        for kind, name in ((SnapBrush, SNAP), (SuperpixelTool, SUPERPIXELS)):
            if isinstance(tool, kind):
                self._amounts[name] = tool.amount

    def _on_amount(self, share: float) -> None:
        tool = None if self._layer is None else self._layer.tool
        if tool is not None:
            least, most = tool.amounts
            tool.amount = least + share * (most - least)
            self._keep_amount()

    def _accept(self, points: Sequence[tuple[float, float]]) -> None:
        clicks = self._context.session.clicks
        self._context.in_background(lambda: clicks.accept(points), self._on_accepted, name="Accepting a region")

    def _take_back(self, points: Sequence[tuple[float, float]]) -> None:
        clicks = self._context.session.clicks
        self._context.in_background(lambda: clicks.take_back(points), self._on_taken, name="Taking a region back")

    def _on_taken(self, number: int) -> None:
        what = {0: "No accepted region is there.", 1: "One region is taken back; Ctrl+Z brings it again."}
        self._predict.show_doubt(what.get(number, f"{number} regions are taken back; Ctrl+Z brings them again."))

    def _on_accepted(self, found: list[Component]) -> None:
        if not found:
            self._predict.show_doubt("Nothing is predicted there.")
            return
        entry = self._context.entry
        mpp = None if entry is None else entry.slide.mpp
        pixels = sum(c.pixels for c in found)
        size = f"{pixels:.3g} px" if mpp is None else f"{pixels * mpp[0] * mpp[1] * 1e-6:.3g} mm²"
        names = {c.id: c.name for c in self._context.session.classes}
        of = " and ".join(dict.fromkeys(names.get(c.class_id, str(c.class_id)) for c in found))
        part = " The region continues: only the part around the click was added." if any(c.cut for c in found) else ""
        self._predict.show_doubt(
            f"Added {size} of {of} to the annotations.{part} Strokes inside take precedence; Ctrl+Z undoes this."
        )
