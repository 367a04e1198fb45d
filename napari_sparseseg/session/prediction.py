"""Models in and out, and predictions on request: a box, or the whole slide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.config import match_classes
from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.tile_store import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.review import Mistake
    from napari_sparseseg.prediction.slide import SlideResult
    from napari_sparseseg.prediction.slide.batch import BatchResult
    from napari_sparseseg.prediction.tissue import TissueMask
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.live import LiveWorker
    from napari_sparseseg.session.slides import SlideSet
    from napari_sparseseg.session.training import LearningLoop
    from napari_sparseseg.slides import Slide

ACCEPTED_PX = 2048
"""Side in prediction pixels of the part of the slide in which a region can be accepted."""


class Predictor:
    """Uses the loop's present model.

    Parameters
    ----------
    progressed
        Called whenever `fraction` changes.
    """

    def __init__(
        self,
        slides: SlideSet,
        loop: LearningLoop,
        live: LiveWorker,
        engine: Engine,
        progressed: Callable[[], None],
    ) -> None:
        self._slides, self._loop, self._live, self._engine = slides, loop, live, engine
        self._progressed = progressed
        self._visited: dict[str, list[Box]] = {}
        self._tissue: dict[str, TissueMask] = {}
        self._rng = np.random.default_rng(0)
        self.fraction: float | None = None
        """0..1 while a whole slide is predicted, else None."""

    def model(self) -> Model:
        """The present model.

        Raises
        ------
        PredictionError
            When there is none yet.
        """
        if self._loop.model is None:
            raise PredictionError("there is no model yet; train one or load one first.")
        return self._loop.model

    def load(self, path: Path, device: str) -> None:
        """Show a saved model; see `Session.load_model`."""

        def load() -> Model:
            from napari_sparseseg.learning.model import load_model

            return load_model(path, device=device)

        model = self._engine.call(load)
        labelled = any(any(e.annotations.counts().values()) for e in self._slides.entries)
        classes, channels = match_classes(self._slides.classes if labelled else (), model.metadata.classes)
        self._slides.set_classes(classes)
        self._engine.call(lambda: self._loop.use_model(model.with_classes(channels)))

    def export(self, path: Path) -> None:
        """Write the model for other programs; see `Session.export_model`."""
        model = self.model()

        def export() -> None:
            from napari_sparseseg.learning.export import export_model

            export_model(model, path)

        self._engine.call(export)

    def predict(self, box: tuple[int, int, int, int], mpp: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Labels and probabilities of a level-0 box; see `Session.predict`."""
        from napari_sparseseg.prediction.tiles import model_frame, predict_region

        model, slide = self.model(), self._slides.active.slide
        frame = slide.frame(mpp if mpp is not None else model.metadata.mpp)
        seen = model_frame(model.metadata, slide, frame)
        return self._engine.call(lambda: predict_region(model, slide, frame.region(Box(*box)), frame, read_frame=seen))

    def next_region(self) -> Suggestion | None:
        """The most doubtful unlabelled tissue; see `Session.next_region`."""
        from napari_sparseseg.prediction.guidance import candidates, suggest
        from napari_sparseseg.prediction.tissue import detect_tissue

        model, entry = self.model(), self._slides.active
        frame = entry.slide.frame(model.metadata.mpp)
        visited = self._visited.setdefault(entry.key, [])

        def look() -> Suggestion | None:
            tissue = self._tissue.get(entry.key) or detect_tissue(entry.slide)
            self._tissue[entry.key] = tissue
            cells = candidates(entry.slide.shape, frame, entry.annotations.snapshot(), tissue, visited, self._rng)
            return suggest(model, entry.slide, frame, cells, visited)

        found = self._engine.call(look)
        if found is not None:
            visited.append(found.box)
        return found

    def review(self) -> list[Mistake]:
        """Held-out strokes that the model gets wrong; see `Session.review`."""
        from napari_sparseseg.prediction.review import mistakes

        model = self.model()

        def look() -> list[Mistake]:
            held = self._loop.held
            if held is None:
                raise PredictionError("nothing is held out, because the model was loaded: train first, then review.")
            if not held.exclude:
                raise PredictionError(
                    "no stroke is held out: one is, of each class that has two strokes or more. Draw some more."
                )
            return mistakes(model, held)

        return self._engine.call(look)

    def accept(self, at: tuple[float, float]) -> Component:
        """The predicted region around a point becomes a dense region; see `Session.accept_region`."""
        from napari_sparseseg.annotations import Shape
        from napari_sparseseg.prediction.component import component_at

        model, entry = self.model(), self._slides.active
        slide = entry.slide
        frame = slide.frame(model.metadata.mpp)
        whole = frame.shape(slide.shape)
        y, x = (math.floor(v / d) for v, d in zip(at, frame.downsample, strict=True))
        if not (0 <= y < whole[0] and 0 <= x < whole[1]):
            raise PredictionError(f"({at[0]:.0f}, {at[1]:.0f}) lies outside the slide.")
        region, labels = self._labels_around(model, slide, frame, y, x)
        found = component_at(labels, y - region.y, x - region.x, region, frame, whole)
        entry.annotations.draw([Shape("dense", found.class_id, found.rings)])
        return found

    def _labels_around(self, model: Model, slide: Slide, frame: Frame, y: int, x: int) -> tuple[Box, np.ndarray]:
        """Class ids around a frame pixel: those that the live view shows, else predicted now in a smaller window."""
        from napari_sparseseg.prediction.tiles import model_frame, predict_region

        inside = Box(0, 0, *frame.shape(slide.shape))
        live = self._live.view
        if live is not None and live.slide is slide and live.frame == frame:
            region = Box(y, x, 0, 0).grown(ACCEPTED_PX // 2).intersection(inside)
            labels = live.store.read(LABELS, 0, region)
            if labels[y - region.y, x - region.x]:
                return region, labels
        region = Box(y, x, 0, 0).grown(ACCEPTED_PX // 4).intersection(inside)
        seen = model_frame(model.metadata, slide, frame)
        return region, self._engine.call(lambda: predict_region(model, slide, region, frame, read_frame=seen)[0])

    def predict_project(self, folder: Path, **options: Any) -> BatchResult:
        """Every open slide; see `Session.predict_project`."""
        from napari_sparseseg.prediction.slide.batch import predict_batch

        def predict(slide: Slide, files: dict[str, Path]) -> SlideResult:
            return self.predict_slide(**files, slide=slide, **options)

        replace = bool(options.get("resume") or options.get("overwrite"))
        return predict_batch([e.slide for e in self._slides.entries], folder, predict, replace=replace)

    def predict_slide(self, out: Path, *, slide: Slide | None = None, **options: Any) -> SlideResult:
        """A whole slide, by default the active one, into a file while training and the live view hold still."""
        from napari_sparseseg.prediction.slide import run_prediction

        model, slide = self.model(), slide or self._slides.active.slide
        report = options.pop("progress", None)

        def progress(state: Any) -> None:
            self._set(state.fraction)
            if report is not None:
                report(state)

        run = self._loop.run
        hold = run is not None and not run.paused
        if run is not None and hold:
            run.paused = True
        self._live.held = True
        self._set(0.0)
        try:
            return run_prediction(slide, model, out, progress=progress, **options)
        finally:
            self._live.held = False
            if run is not None and hold:
                run.paused = False
            self._set(None)
            self._engine.wake()

    def _set(self, fraction: float | None) -> None:
        self.fraction = fraction
        self._progressed()
