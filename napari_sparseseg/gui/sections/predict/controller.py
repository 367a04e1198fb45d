"""Prediction: what the live layer shows, areas, the whole slide, exports, and napari's activity dock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack
from weakref import WeakKeyDictionary

from napari.layers import Shapes
from napari.utils.notifications import show_warning
from napari.utils.progress import cancelable_progress
from qtpy.QtCore import QObject, QUrl
from qtpy.QtGui import QDesktopServices

from napari_sparseseg.files import SUMMARY, result_name
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.context import single_shot
from napari_sparseseg.gui.layers.layer_exchange import around, selected_outlines
from napari_sparseseg.gui.layers.napari_compat import insert_unselected, view_box
from napari_sparseseg.gui.layers.prediction import LiveDisplay
from napari_sparseseg.gui.layers.result import result_layer
from napari_sparseseg.gui.layers.slide_layers import slide_name
from napari_sparseseg.gui.results.preview import CleanPreview
from napari_sparseseg.gui.sections.predict.areas import areas, areas_of_slide, predicted_share
from napari_sparseseg.gui.sections.predict.view import CONTOUR_PX, DRAWN, SCREEN, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.classes.controller import ClassActions
    from napari_sparseseg.gui.sections.predict.areas import Area
    from napari_sparseseg.gui.sections.predict.view import PredictPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.prediction.slide.batch import BatchResult
    from napari_sparseseg.prediction.slide.options import PredictSettings, SlideResult
    from napari_sparseseg.slides import Slide

AREAS_MS = 250
OPACITIES = (0.25, 0.45, 0.7, 1.0)
ENDINGS = {"geojson": "-regions.geojson", "csv": "-areas.csv"}
"""Of suggested names; `SLIDE.geojson` beside a slide holds its annotations."""


class _Predicted(NamedTuple):
    """A whole-slide prediction: file, result, and the model that made it."""

    out: Path
    result: SlideResult
    model: Model | OnnxModel | None


class PredictActions(QObject):
    """Connects the Predict section, the live layer and the session."""

    def __init__(self, context: Context, panel: PredictPanel, slides: SlideActions, classes: ClassActions) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._classes = context, panel, slides, classes
        self._results: WeakKeyDictionary[Slide, _Predicted] = WeakKeyDictionary()
        self._written = Path()
        self._shown: Layer | None = None
        self.display = LiveDisplay(context)
        self.preview = CleanPreview(context, slides, self.display)
        self._activity = Activity(context)
        self._timer = single_shot(self, AREAS_MS, self._measure)
        panel.live_toggled.connect(self._on_live)
        panel.shown_chosen.connect(self.display.show)
        panel.contour_toggled.connect(self._on_contour)
        panel.opacity_changed.connect(self._on_opacity)
        panel.hidden_toggled.connect(self._on_hidden)
        panel.layer_requested.connect(self._on_layer)
        panel.folder_requested.connect(self._on_folder)
        panel.areas.place_chosen.connect(self._measure)
        panel.areas.table_requested.connect(self._on_table)
        panel.slide_requested.connect(self._on_slide)
        panel.geojson_requested.connect(lambda: self._on_result("geojson", "QuPath (*.geojson)"))
        panel.csv_requested.connect(lambda: self._on_result("csv", "Table (*.csv)"))
        panel.scribbles_requested.connect(self._on_scribbles)
        self.display.refreshed.connect(self._on_refreshed)
        self.display.shown_changed.connect(self._on_shown)
        self.display.removed.connect(self._on_layer_removed)
        for layer in context.viewer.layers:
            self._watch(layer)
        context.viewer.layers.events.inserted.connect(self._on_inserted)
        slides.binding_changed.connect(self._on_binding)
        classes.shown.connect(self._on_classes)
        context.status_changed.connect(self._on_status)
        context.session_replaced.connect(self._on_session)
        context.session.live_enabled = panel.live.isChecked()
        self._on_shown()
        self._on_classes()
        self._on_status()

    def predict_slide(self, out: str, **settings: Unpack[PredictSettings]) -> None:
        """Predict the active slide into a file, in the background; settings are those of `Session.predict_slide`."""
        session, slide, model = self._context.session, self._context.session.slide, self._context.session.model
        stop = self._context.stop_prediction = threading.Event()
        shown = str(settings.get("geojson") or settings.get("csv") or out)
        self._context.in_background(
            lambda: session.predict_slide(out, slide=slide, stop=stop, **settings),
            lambda result: self._on_predicted(slide, _Predicted(Path(out), result, model), shown),
            name="Predicting the slide",
        )

    def predicted(self, slide: Slide) -> Path | None:
        """The label image that was predicted last of a slide: the cleaned one, where it was cleaned."""
        made = self._results.get(slide)
        return None if made is None else made.result.cleaned or made.out

    def predict_all(self) -> None:
        """Ask for a folder and predict every open slide into it, in the background."""
        session = self._context.session
        if session.model is None or not session.entries:
            self._context.problem.emit("Nothing to predict yet: open slides, then train or load a model.", "")
            return
        folder = dialogs.ask_folder(self._panel, "Folder for the predictions of all slides")
        if folder:
            looking = f"Checking {Path(folder).name}"
            self._context.in_background(lambda: _table_in(folder), lambda t: self._go_on(folder, t), name=looking)

    def _go_on(self, folder: str, table: Path | None) -> None:
        """Predict into a folder; ask before an existing table is replaced."""
        question = f"{table} exists. Predict the slides that are missing, and replace this table?"
        if table is not None and not dialogs.ask_yes(self._panel, "Continue in this folder?", question, "Continue"):
            return
        session = self._context.session
        stop = self._context.stop_prediction = threading.Event()
        self._context.in_background(
            lambda: session.predict_project(folder, stop=stop, resume=True),
            self._on_predicted_all,
            name="Predicting all slides",
        )

    def step_opacity(self) -> None:
        """Give the prediction the next opacity of `OPACITIES`, after the last the first; show it if it is hidden."""
        higher = [o for o in OPACITIES if o > self.display.opacity + 0.01]
        self.display.opacity = higher[0] if higher else OPACITIES[0]
        self.display.visible = True
        self._on_shown()

    def close(self) -> None:
        """Disconnect from viewer and session."""
        self._timer.stop()
        self._context.viewer.layers.events.inserted.disconnect(self._on_inserted)
        for layer in self._context.viewer.layers:
            if isinstance(layer, Shapes):
                layer.events.highlight.disconnect(self._on_selected)
        self.preview.close()
        self.display.close()
        self._activity.close()

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)

    def _watch(self, layer: Layer) -> None:
        if isinstance(layer, Shapes):
            layer.events.highlight.connect(self._on_selected)

    def _on_selected(self) -> None:
        """A shape was selected or moved: napari highlights it."""
        if self._panel.areas.place.currentIndex() == DRAWN:
            self._on_refreshed()

    def _on_live(self, on: bool) -> None:
        self._context.session.live_enabled = on
        if on:
            self.display.renew()
            self.display.look()

    def _on_layer_removed(self) -> None:
        """Without its layer the live prediction is off; the checkbox brings both back."""
        self._panel.live.setChecked(False)

    def _on_contour(self, on: bool) -> None:
        self.display.contour = CONTOUR_PX if on else 0

    def _on_opacity(self, opacity: float) -> None:
        self.display.opacity = opacity

    def _on_hidden(self, hidden: bool) -> None:
        self.display.visible = not hidden

    def _on_shown(self) -> None:
        self._panel.ramp.setVisible(self.display.shown.kind in ("uncertainty", "margin"))
        self._panel.show_opacity(self.display.opacity, visible=self.display.visible)

    def _on_binding(self) -> None:
        self._remove_result()
        self.display.follow(self._slides.binding)
        self._measure()

    def _on_classes(self) -> None:
        self._panel.show_choices(self._context.session.classes, self.display.shown)
        self.display.hide_classes(self._classes.hidden)

    def _on_session(self) -> None:
        self._context.session.live_enabled = self._panel.live.isChecked()
        self._panel.show_result("")

    def _on_status(self) -> None:
        self._panel.show_model(self._context.session.model is not None)
        self._panel.show_predicting(self._context.session.status.state == "predicting")
        self._show_progress()

    def _on_refreshed(self) -> None:
        self._show_progress()
        if not self._timer.isActive():
            self._timer.start()

    def _measure(self) -> None:
        live = self._context.session.live
        on_screen = live is not None and self._panel.areas.place.currentIndex() == SCREEN
        part = predicted_share(live, view_box(self._context.viewer)[0]) if live is not None and on_screen else 1.0
        self._panel.areas.show_areas(self._areas(), part)

    def _show_progress(self) -> None:
        live = self._context.session.live
        if live is None or not self._context.session.live_enabled:
            self._panel.show_progress(0, 0)
        else:
            self._panel.show_progress(live.planned - live.pending, live.planned, rough=live.rough)

    def _areas(self) -> list[Area]:
        live, binding, place = self._context.session.live, self._slides.binding, self._panel.areas.place.currentIndex()
        classes = self._context.session.classes
        if binding is None:
            return []
        slide = binding.entry.slide
        if place == WHOLE:
            predicted = self._results.get(slide)
            return [] if predicted is None else areas_of_slide(predicted.result, slide, classes)
        if live is None or live.slide is not slide:
            return []
        if place == SCREEN:
            return areas(live, view_box(self._context.viewer)[0], classes)
        outlines = selected_outlines(self._context.viewer)
        return areas(live, around(outlines), classes, outlines) if outlines else []

    def _on_slide(self) -> None:
        entry = self._context.entry
        if entry is None:
            return
        if self._context.session.status.state == "predicting":
            self._context.stop_prediction.set()
            return
        suggestion = str(_unused(Path(_beside(entry.slide, ".ome.zarr"))))
        out = dialogs.ask_save(self._panel, "Predict the whole slide into", suggestion, dialogs.RESULTS)
        if out:
            # continues a run of the same model into this file, replaces the file of another model
            self.predict_slide(out, overwrite=True, resume=True)

    def _on_table(self, text: str) -> None:
        path = dialogs.ask_save(self._panel, "Save areas", "areas.csv", "Table (*.csv)")
        if path:
            self._write(path, lambda: Path(path).write_text(text, encoding="utf-8"), "Saving areas")

    def _write(self, path: str, work: Callable[[], object], name: str) -> None:
        """Write a file in the background and report it."""
        self._context.in_background(work, lambda _: self._on_written(path), name=name)

    def _on_written(self, path: str) -> None:
        self._written = Path(path)
        self._panel.show_result(f"Saved {path}", folder=True)

    def _on_predicted(self, slide: Slide, predicted: _Predicted, path: str) -> None:
        self._results[slide] = predicted
        self._measure()
        self._written = Path(path)
        said = ". ".join(filter(None, [f"Saved {path}", predicted.result.remarks]))
        if predicted.result.stain is not None and predicted.result.stain.warning:
            show_warning(f"{slide_name(slide)}: {predicted.result.stain.warning}.")
        self._panel.show_result(said, folder=True, layer=_is_zarr(predicted.out), table=True)

    def _on_layer(self) -> None:
        """Show the predicted slide below the scribbles; one that is shown already is shown anew."""
        binding = self._slides.binding
        predicted = None if binding is None else self._results.get(binding.entry.slide)
        if binding is None or predicted is None or predicted.model is None:
            return
        self._remove_result()
        colours = {c.id: c for c in self._context.session.classes}
        classes = [colours.get(c.id, c) for c in predicted.model.metadata.classes]
        self._shown = layer = result_layer(predicted.out, binding.entry.slide, classes)
        insert_unselected(self._context.viewer, binding.below_scribbles, layer)
        binding.attach(layer)

    def _remove_result(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None and shown in self._context.viewer.layers and not self._context.leaving:
            self._context.viewer.layers.remove(shown)

    def _on_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._written.parent)))

    def _on_predicted_all(self, batch: BatchResult) -> None:
        self._written = Path(batch.summary)
        self._panel.show_result(f"Saved {batch.summary}", folder=True)
        if batch.failed:
            slides = "; ".join(f"{Path(slide).name}: {reason}" for slide, reason in batch.failed)
            self._context.problem.emit(f"{len(batch.failed)} slides could not be predicted. {slides}", "")

    def _on_result(self, what: str, kinds: str) -> None:
        entry = self._context.entry
        if entry is None or self._context.session.model is None:
            self._context.problem.emit("There is nothing to export yet: train or load a model first.", "")
            return
        path = dialogs.ask_save(self._panel, "Export", _beside(entry.slide, ENDINGS[what]), kinds)
        if not path:
            return
        before = self._results.get(entry.slide)
        out = _unused(Path(path).with_suffix(".ome.zarr")) if before is None else before.out
        if before is not None and before.model is not self._context.session.model:
            question = f"{out} was predicted by an earlier model. Predict the slide again and replace it?"
            if not dialogs.ask_yes(self._panel, "Predict the slide again?", question, "Predict again"):
                return
        geojson, csv = (Path(path) if what == kind else None for kind in ENDINGS)
        self.predict_slide(str(out), overwrite=True, resume=True, geojson=geojson, csv=csv)

    def _on_scribbles(self) -> None:
        entry = self._context.entry
        if entry is None:
            return
        path = dialogs.ask_save(
            self._panel, "Export annotations", _beside(entry.slide, ".geojson"), "QuPath (*.geojson)"
        )
        if path:
            annotations = entry.annotations
            self._write(path, lambda: annotations.to_geojson(path, overwrite=True), "Exporting annotations")


def _beside(slide: Slide, ending: str) -> str:
    """A file beside the slide, named after it."""
    path = Path(slide.path)
    return str(path.with_name(result_name(path) + ending))


def _is_zarr(path: Path) -> bool:
    return path.suffix == ".zarr"


def _unused(path: Path) -> Path:
    """`path`, or the first numbered one that does not exist: a file dialog opens an OME-Zarr, which is a folder."""
    stem = result_name(path)
    others = (path.with_name(f"{stem}-{n}.ome.zarr") for n in range(2, 1000))
    return next((p for p in (path, *others) if not p.exists()), path)


def _table_in(folder: str) -> Path | None:
    """The table of an earlier prediction of all slides, or another file of that name."""
    table = Path(folder) / SUMMARY
    return table if table.exists() else None


STEPS = 1000


class _Bar(cancelable_progress):
    """A bar moved from outside; napari's own checks its cancel button only while it iterates."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class Activity(QObject):
    """Shows ``session.status.progress`` of a whole-slide prediction in napari's activity dock, with a cancel button.

    Training is not there: napari's activity indicator moves as long as there is a bar, and each of its frames composes
    the whole window, a quarter of a core with software OpenGL.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._context = context
        self._bar: _Bar | None = None
        context.status_changed.connect(self._on_status)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _on_status(self) -> None:
        status, context = self._context.session.status, self._context
        if status.state != "predicting" or status.progress is None:
            self.close()
            return
        if self._bar is None:
            self._bar = _Bar(total=STEPS, desc="Predicting the slide", cancel_callback=context.stop_prediction.set)
        done = round(STEPS * status.progress)
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)
