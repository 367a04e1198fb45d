"""Prediction with the session's model: the live view, a box, whole slides, suggestions; and models in and out."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_sparseseg.config import match_classes
from napari_sparseseg.errors import ModelError, PredictionError
from napari_sparseseg.files import OwnFiles
from napari_sparseseg.geometry import Box
from napari_sparseseg.prediction.live_view import LiveView
from napari_sparseseg.prediction.tile_store import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.review import Mistake
    from napari_sparseseg.prediction.slide.batch import BatchResult
    from napari_sparseseg.prediction.slide.options import PredictOptions, PredictSettings, Progress, SlideResult
    from napari_sparseseg.prediction.tissue import TissueMask
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.slides import SlideCollection
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide
ACCEPTED_PX = 2048
"""Side in prediction pixels of the part of the slide in which a region can be accepted."""


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

    def __init__(self, slides: SlideCollection, training: Training) -> None:
        self._slides, self._training = slides, training
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
        model = self._training.model
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
        seen = dict(self._training.seen).get(entry.key, 0)
        return self.view.work(model, self._training.status.model_version, seen)

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


class Predictor:
    """Predicts with the current model.

    Parameters
    ----------
    progressed
        Called whenever `fraction` changes.
    """

    def __init__(
        self,
        slides: SlideCollection,
        training: Training,
        live: LiveWorker,
        engine: Engine,
        progressed: Callable[[], None],
    ) -> None:
        self._slides, self._training, self._live, self._engine = slides, training, live, engine
        self._progressed = progressed
        self._visited: dict[str, list[Box]] = {}
        self._tissue: dict[str, TissueMask] = {}
        self._rng = np.random.default_rng(0)
        self._written = OwnFiles()
        self.fraction: float | None = None
        """0..1 while a whole slide is predicted, else None."""

    def model(self) -> Model | OnnxModel:
        """The present model.

        Raises
        ------
        PredictionError
            When there is none yet.
        """
        self._slides.require_open()
        if self._training.model is None:
            raise PredictionError("there is no model yet; train one or load one first.")
        return self._training.model

    def load(self, path: Path) -> None:
        """Load a model file and use it; see `Session.load_model`."""
        model = self.read(path)
        self.use(model)
        if note := model.note:
            self._training.note(note)

    def read(self, path: Path) -> Model | OnnxModel:
        """The model in a file."""

        def load() -> Model | OnnxModel:
            from napari_sparseseg.learning.legacy import recognised
            from napari_sparseseg.learning.model import Model, load_model

            model = load_model(path, device=self._training.settings.device)
            slides = [entry.slide for entry in self._slides.entries]
            return recognised(model, slides) if isinstance(model, Model) else model

        return self._engine.call(load)

    def use(self, model: Model | OnnxModel, *, stay: bool = False) -> None:
        """Show a model; see `Session.use_model`. With `stay` no stroke refits it until training is asked for."""
        self._slides.require_open()
        metadata = model.metadata
        classes, channels = match_classes(self._slides.classes if self._slides.labelled else (), metadata.classes)
        self._slides.replace_classes(classes)
        shown = model if channels == metadata.classes else model.with_classes(channels)
        self._engine.call(lambda: self._training.use_model(shown, stay=stay))
        if metadata.extra.get("net", {}).get("kind") == "pretrained":
            self._training.recall(self._training.settings.updated({"encoder": metadata.encoder}))

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write the model as a file; see `Session.save_model`."""
        self.model()
        self._written.require(path, ModelError, overwrite=overwrite)
        self._engine.call(lambda: self._training.export(path))
        self._written.add(path)

    def follow_classes(self) -> None:
        """Give the model's classes the ids that their names have after a merge."""
        model, ids = self._training.model, {c.name: c.id for c in self._slides.classes}
        if model is not None and any(ids.get(c.name, c.id) != c.id for c in model.metadata.classes):
            self.use(model)

    def export(self, path: Path, *, overwrite: bool) -> None:
        """Write the model for other programs; see `Session.export_model`."""
        model = self.model()
        self._written.require(path, PredictionError, overwrite=overwrite)

        def export() -> None:
            from napari_sparseseg.learning.export import export_model

            export_model(model, path)

        self._engine.call(export)
        self._written.add(path)

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
            held = self._training.held
            if held is None:
                raise PredictionError("nothing is held out, because the model was loaded: train first, then review.")
            if not held.exclude:
                raise PredictionError(
                    "no stroke is held out: one is, of each class that has two strokes or more. Draw some more."
                )
            return mistakes(model, held)

        return self._engine.call(look)

    @property
    def live(self) -> LiveView | None:
        """The live prediction of the active slide; None until there is a model."""
        return self._live.view

    def components(self, points: Sequence[tuple[float, float]]) -> list[Component]:
        """The predicted regions under level-0 (y, x) points, not far from the first; see `Clicks.accept`."""
        from napari_sparseseg.prediction.component import components_under

        model, slide = self.model(), self._slides.active.slide
        frame = slide.frame(model.metadata.mpp)
        whole = frame.shape(slide.shape)
        pixels = [tuple(math.floor(v / d) for v, d in zip(at, frame.downsample, strict=True)) for at in points]
        y, x = pixels[0]
        if not (0 <= y < whole[0] and 0 <= x < whole[1]):
            raise PredictionError(f"({points[0][0]:.0f}, {points[0][1]:.0f}) lies outside the slide.")
        region, labels = self._labels_around(model, slide, frame, y, x)
        return components_under(labels, ((y - region.y, x - region.x) for y, x in pixels), region, frame, whole)

    def shown_region(self, at: tuple[float, float]) -> tuple[int, Box, np.ndarray, tuple[float, float]] | None:
        """See `Clicks.shown_region`."""
        from napari_sparseseg.prediction.component import region_around

        live = self._live.view
        if live is None or self._slides.current is None or live.slide is not self._slides.current.slide:
            return None
        y, x = (math.floor(v / d) for v, d in zip(at, live.frame.downsample, strict=True))
        region = Box(y, x, 0, 0).grown(ACCEPTED_PX // 2).intersection(Box(0, 0, *live.store.shape))
        if not (region.y <= y < region.y1 and region.x <= x < region.x1):
            return None
        labels = live.store.read(LABELS, 0, region)
        class_id = int(labels[y - region.y, x - region.x])
        if not class_id:
            return None
        return class_id, region, region_around(labels, y - region.y, x - region.x), live.frame.downsample

    def _labels_around(
        self, model: Model | OnnxModel, slide: Slide, frame: Frame, y: int, x: int
    ) -> tuple[Box, np.ndarray]:
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

    def all_slides(
        self,
        folder: Path,
        options: PredictOptions | None,
        settings: PredictSettings,
        *,
        progress: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> BatchResult:
        """Predict every open slide into a folder; see `Session.predict_project`."""
        from napari_sparseseg.prediction.slide.batch import predict_batch
        from napari_sparseseg.prediction.slide.executors import workers_here
        from napari_sparseseg.prediction.slide.options import PredictOptions
        from napari_sparseseg.prediction.slide.shards import shard_grid

        model, chosen = self.model(), replace(options or PredictOptions(), **settings)
        stop = stop or threading.Event()
        workers = 1 if chosen.scheduler else chosen.workers or workers_here(model, chosen.memory_gb)

        def predict(slide: Slide, files: dict[str, Path], of_several: bool) -> SlideResult:
            mine = replace(chosen, geojson=files["geojson"], csv=files["csv"])
            if of_several:
                return self._run(model, slide, files["out"], replace(mine, workers=1), None, stop)
            return self._run(model, slide, files["out"], mine, self._reported(progress), stop)

        def small(slide: Slide) -> bool:
            frame = slide.frame(chosen.mpp or model.metadata.mpp if slide.mpp else None)
            return len(shard_grid(frame.shape(slide.shape))) < workers

        with self._others_paused():
            return predict_batch(
                [e.slide for e in self._slides.entries],
                folder,
                predict,
                workers=workers,
                small=small,
                progress=self._reported(progress),
                stop=stop,
                replace=chosen.resume or chosen.overwrite,
            )

    def whole_slide(
        self,
        out: Path,
        options: PredictOptions | None,
        settings: PredictSettings,
        *,
        slide: Slide | None,
        progress: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> SlideResult:
        """Predict a slide into a file while training and the live view pause; see `Session.predict_slide`."""
        from napari_sparseseg.prediction.slide.options import PredictOptions

        options = replace(options or PredictOptions(), **settings)
        with self._others_paused():
            return self._run(
                self.model(), slide or self._slides.active.slide, out, options, self._reported(progress), stop
            )

    def _run(
        self,
        model: Model | OnnxModel,
        slide: Slide,
        out: Path,
        options: PredictOptions,
        progress: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> SlideResult:
        from napari_sparseseg.prediction.results.regions import find_regions
        from napari_sparseseg.prediction.slide import run_prediction

        if options.regions is not None:  # a class of the annotations is known here only
            annotations = self._slides.entry_of(slide).annotations
            options = replace(options, regions=find_regions(options.regions, slide, annotations))
        return run_prediction(slide, model, out, options, progress=progress, stop=stop)

    def _reported(self, progress: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
        def report(state: Progress) -> None:
            self._set(state.fraction)
            if progress is not None:
                progress(state)

        return report

    @contextmanager
    def _others_paused(self) -> Iterator[None]:
        """Training and the live view wait meanwhile."""
        run = self._training.run
        hold = run is not None and not run.paused
        if run is not None and hold:
            run.paused = True
        self._live.held = True
        self._set(0.0)
        try:
            yield
        finally:
            self._live.held = False
            if run is not None and hold:
                run.paused = False
            self._set(None)
            self._engine.wake()

    def _set(self, fraction: float | None) -> None:
        self.fraction = fraction
        self._progressed()
