"""What a session does with its model: save it, predict with it, say where to draw next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.geometry import Box
from napari_sparseseg.session.slide_session import SlideSession

if TYPE_CHECKING:
    import os

    import numpy as np

    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.review import Mistake
    from napari_sparseseg.prediction.slide import SlideResult
    from napari_sparseseg.prediction.slide.batch import BatchResult
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.live import LiveWorker
    from napari_sparseseg.session.prediction import Predictor
    from napari_sparseseg.session.training import LearningLoop


class PredictionSession(SlideSession):
    """The part of `Session` that needs a model; `Session` makes the objects that do the work."""

    _engine: Engine
    _loop: LearningLoop
    _live: LiveWorker
    _predictor: Predictor

    @property
    def model(self) -> Model | None:
        """The best model now, an immutable snapshot."""
        return self._loop.model

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the present model as one ``.safetensors`` file."""
        self._predictor.model()
        self._engine.call(lambda: self._loop.save(Path(path)))

    def export_model(self, path: str | os.PathLike[str]) -> None:
        """Write the present model for other programs: ``.onnx``, or a bioimage.io package ``.zip``."""
        self._predictor.export(Path(path))

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Use a saved model: predict with it, and continue from it when training starts.

        Its classes are matched by name with the session's; with nothing labelled yet its table replaces the session's.
        Its encoder becomes the session's setting: training with another one would begin anew.
        """
        self._predictor.load(Path(path), self.config.device)
        loaded = self._predictor.model().metadata
        if loaded.extra["net"]["kind"] == "pretrained":
            self._config = self.config.updated({"encoder": loaded.encoder})  # so set, it was not asked for by name

    def predict(self, box: tuple[int, int, int, int], mpp: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict a level-0 box (y, x, height, width) of the active slide.

        Parameters
        ----------
        mpp
            Resolution of the answer, um per pixel; None: the model's own.

        Returns
        -------
        labels, probabilities
            uint8 (h, w) class ids; float32 (K, h, w) in the order of the model's classes.

        Raises
        ------
        PredictionError
            When there is no model yet.
        """
        return self._predictor.predict(box, mpp)

    def next_region(self) -> Suggestion | None:
        """Unlabelled tissue of the active slide where a stroke would teach most; None where none is left.

        Each call suggests another place. It predicts a handful of patches: call it off the GUI thread.
        """
        return self._predictor.next_region()

    def review(self) -> list[Mistake]:
        """Held-out strokes of all open slides that the model gets wrong, worst first.

        What is held out is swapped while training goes on, so the list changes. Call it off the GUI thread.

        Raises
        ------
        PredictionError
            When there is no model, or nothing is held out.
        """
        return self._predictor.review()

    def accept_region(self, at: tuple[float, float]) -> Component:
        """Make the predicted region around a level-0 (y, x) of the active slide a dense region: one undo step.

        It is the 4-connected region of one class that the live view shows there, or that is predicted now. Scribbles
        inside it, drawn before or later, count more than it does. Call it off the GUI thread.

        Raises
        ------
        PredictionError
            When there is no model, or the point lies outside the slide.
        """
        return self._predictor.accept(at)

    def predict_slide(self, out: str | os.PathLike[str], **options: Any) -> SlideResult:
        """Predict the active slide into ``OUT.ome.zarr`` or ``.ome.tif``; options: `slide_prediction.predict_slide`."""
        return self._predictor.predict_slide(Path(out), **options)

    def predict_project(self, folder: str | os.PathLike[str], **options: Any) -> BatchResult:
        """Predict every open slide, whatever its role, into a folder: image, objects, table, and one ``summary.csv``.

        A slide that fails keeps no other from being predicted. Options are those of `predict_slide`.
        """
        return self._predictor.predict_project(Path(folder), **options)

    @property
    def live(self) -> LiveView | None:
        """The live prediction of the active slide; None before there is a model."""
        return self._live.view

    @property
    def live_enabled(self) -> bool:
        """Whether what is on screen is predicted and strokes are learned at once, also when no training runs."""
        return self._live.enabled

    @live_enabled.setter
    def live_enabled(self, on: bool) -> None:
        self._live.enabled = self._loop.follow_strokes = on
        self._engine.wake()

    def look_at(self, box: tuple[int, int, int, int], pixel_size: float) -> None:
        """Say what is on screen: level-0 box of the active slide, level-0 pixels per screen pixel."""
        self._live.look_at(Box(*box), pixel_size)
        if self._live.enabled:
            self._engine.wake()
