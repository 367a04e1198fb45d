"""The controller behind the panel, the console and the shell: whatever a button does, one method here does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from psygnal import Signal

from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, TrainConfig, TrainSettings
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.geometry import Box
from napari_sparseseg.session.clicks import Clicks
from napari_sparseseg.session.engine import Engine
from napari_sparseseg.session.history import SessionHistory
from napari_sparseseg.session.importing import Imports
from napari_sparseseg.session.persistence import Exists, ProjectKeeper
from napari_sparseseg.session.prediction import LiveWorker, Predictor
from napari_sparseseg.session.presets import Presets
from napari_sparseseg.session.results import Results
from napari_sparseseg.session.runs import TrainingRuns
from napari_sparseseg.session.slides import SlideCollection, SlideEntry
from napari_sparseseg.session.status import Status
from napari_sparseseg.session.strokes import StrokeList
from napari_sparseseg.session.training import Training

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.annotations.merging import Conflict
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.prediction.component import Component
    from napari_sparseseg.prediction.guidance import Suggestion
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.prediction.review import Mistake
    from napari_sparseseg.prediction.slide.batch import BatchResult
    from napari_sparseseg.prediction.slide.options import PredictOptions, PredictSettings, Progress, SlideResult
    from napari_sparseseg.session.project import Role
    from napari_sparseseg.slides import Slide


class Session:
    """Slides, annotations, training and prediction; see `clicks`, `strokes`, `imports`, `presets`, `runs`, `results`.

    Methods may be called from any thread except the session's own background thread. Signals are emitted on the thread
    where the change happened; in a GUI, connect with ``thread="main"``.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> from napari_sparseseg.samples import sample_scribbles, sample_slide
    >>> with Session() as session:
    ...     slide = session.open(sample_slide())
    ...     added = session.import_annotations(sample_scribbles())
    ...     session.train("instance", steps=1, mpp=8.0, wait=True)  # seconds=60 for a useful model
    ...     labels, probabilities = session.predict((0, 0, 1024, 2048), mpp=8.0)
    >>> labels.shape, probabilities.shape
    ((64, 128), (5, 64, 128))

    Parameters
    ----------
    classes
        The initial class table: names, (name, colour) pairs or `ClassDef`.
    config
        Training settings; None: the defaults.
    autosave
        Write every stroke to disk at once, into a recovery folder until the session is saved as a project.

    Attributes
    ----------
    history
        Undo and redo of what was done on the active slide and with the classes.
    status_changed
        Signal (Status).
    live_changed
        Signal (): `live` is a different object now; layers on it must be recreated.
    slides_changed
        Signal (): a slide was added, removed or activated, or its role or mpp was set.
    annotated
        Signal (): a stroke was committed, undone or redone on any slide, or the classes changed.
    """

    status_changed = Signal(Status)
    live_changed = Signal()
    slides_changed = Signal()
    annotated = Signal()

    def __init__(
        self,
        classes: Iterable[ClassDef | tuple[str, str] | str] = DEFAULT_CLASSES,
        *,
        config: TrainConfig | None = None,
        autosave: bool = False,
    ) -> None:
        self._slides = SlideCollection(classes)
        self._training = learn = Training(self._slides, config or TrainConfig(), self._emit_status)
        self._keeper = ProjectKeeper(self._slides, self._training, autosave=autosave)
        self.history = SessionHistory(self._slides, self._keeper.announcing)
        self._live = view = LiveWorker(self._slides, self._training)
        workers = (learn.end_worker, self._slides.watch, learn.refit_worker, view.work, learn.train_worker)
        self._engine = Engine(workers, learn.fail)
        self._predictor = Predictor(self._slides, learn, view, self._engine, self._emit_status)
        self.clicks = Clicks(self._slides, self._predictor)
        self.results, self.strokes = Results(self._slides), StrokeList(self._slides, learn, self._engine)
        self.imports = Imports(self._slides, learn, self._keeper.set_classes)
        self.presets = Presets(self._slides, learn, self._keeper.set_classes, self._keeper.write_changes)
        self.runs = TrainingRuns(self._slides, learn, self._keeper, self._predictor, self._engine)
        self._live.changed.connect(self.live_changed.emit)
        self._slides.annotated.connect(self._on_annotated)
        self._slides.changed.connect(self._on_slides_changed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self, path: str | os.PathLike[str], *, role: Role | None = None, image: int | None = None) -> Slide:
        """Open a slide (a file, an OME-Zarr folder or an address) and make it active; `SlideOpenError` if that fails.

        A slide of the project that was moved is recognised by its fingerprint: its strokes, role and mpp are restored.
        The role is ``train``, ``held-out`` or ``predict``; None: that in the project, else ``train``. `image` is the
        number of the image in a file that contains several; None: the largest.
        """
        return self._keeper.open(path, role, image).slide

    def add(self, slide: Slide, *, role: Role = "train") -> Slide:
        """Add an open slide (an `ArraySlide` for images in memory) and make it active; the session will close it."""
        self._keeper.add(slide, role)
        return slide

    def remove(self, slide: Slide | None = None) -> None:
        """Close a slide, by default the active one; opening it again restores its strokes, role and mpp."""
        self._keeper.remove(self._slides.entry_of(slide))

    def activate(self, slide: Slide) -> None:
        """Make an open slide the active one."""
        self._slides.activate(self._slides.entry_of(slide))

    def set_role(self, role: Role, slide: Slide | None = None) -> None:
        """Use a slide, by default the active one, to ``train``, as ``held-out`` or only to ``predict``."""
        self._slides.set_role(self._slides.entry_of(slide), role)
        self._keeper.write_changes()

    def set_mpp(self, mpp: float | tuple[float, float] | None, slide: Slide | None = None) -> None:
        """Set the um per level-0 pixel, one number or (y, x), of a slide, by default the active one; None: unknown."""
        self._slides.set_mpp(self._slides.entry_of(slide), mpp)
        self._keeper.write_changes()

    @property
    def slide(self) -> Slide:
        """The active slide; `SlideError` when none is open."""
        return self._slides.active.slide

    @property
    def slides(self) -> tuple[Slide, ...]:
        """All open slides."""
        return tuple(e.slide for e in self._slides.entries)

    @property
    def entries(self) -> tuple[SlideEntry, ...]:
        """All open slides, each with its annotations, its role and a key that stays the same."""
        return self._slides.entries

    @property
    def entry(self) -> SlideEntry | None:
        """The entry of the active slide, or None."""
        return self._slides.current

    @property
    def annotations(self) -> Annotations:
        """Annotations of the active slide; assign an `Annotations` of the same shape to replace them."""
        return self._slides.active.annotations

    @annotations.setter
    def annotations(self, annotations: Annotations) -> None:
        self._keeper.replace_annotations(self._slides.active, annotations)

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of all slides; assign to change it, as one step of `history`."""
        return self._slides.classes

    @classes.setter
    def classes(self, classes: Sequence[ClassDef]) -> None:
        self._keeper.set_classes(classes)

    def import_annotations(self, path: str | os.PathLike[str] | None = None, conflict: Conflict = "over") -> int:
        """Add the annotations of a file to the active slide's, as one undo step; returns how many; see `Imports.draw`.

        None: of the file beside the slide with its name. Classes are matched by name; new ones with objects are added.
        """
        return self.imports.draw(self.imports.read(path), conflict)

    # Training

    @property
    def config(self) -> TrainConfig:
        """Settings of the next run; assign to change them. Setting an encoder allows its download."""
        return self._training.settings

    @config.setter
    def config(self, config: TrainConfig) -> None:
        self._training.settings = config
        self._keeper.write_changes()

    @property
    def training_mpp(self) -> float | None:
        """The resolution that `train` uses now, um per pixel; None while no slide's mpp is known."""
        return self._slides.training_mpp(self.config)

    def require_two_classes(self) -> None:
        """Raise `TrainingError` unless strokes of at least two classes are there to train on."""
        self._slides.require_two_classes()

    def train(
        self,
        balancing: str | None = None,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        patience: int | None = None,
        wait: bool = False,
        **settings: Unpack[TrainSettings],
    ) -> None:
        """Train on everything labelled, in the background.

        Parameters
        ----------
        balancing, **settings
            Fields of `TrainConfig`, used for later runs as well. An `encoder` named here is downloaded if necessary.
        seconds, steps
            Budget of this run, pauses excluded; without either it runs until `stop`.
        patience
            End after this many held-out comparisons in a row without improvement; the best model is used in any case.
        wait
            Return only when the run has ended, and raise the error that ended it.

        Raises
        ------
        TrainingError
            When fewer than two classes are labelled, training is running already, or only the project names the
            encoder.
        """
        values = {**settings} if balancing is None else {**settings, "balancing": balancing}
        run = self._training.start(values, seconds, steps, patience)
        self._keeper.write_changes()
        self._engine.wake()
        self._emit_status()
        if wait:
            run.wait(self._engine, alive=True)

    def warm_up(self) -> None:
        """Import the network libraries now, in the background, so that the first training starts sooner."""
        self._engine.submit(self._training.warm_up)

    def pause(self) -> None:
        """Pause training."""
        self._training.set_paused(True)

    def resume(self) -> None:
        """Resume paused training."""
        self._training.set_paused(False)
        self._engine.wake()

    def stop(self, *, wait: bool = True) -> None:
        """End training after the current step and write a checkpoint; without a run nothing happens."""
        run = self._training.stop()
        self._engine.wake()
        if run is not None and wait:
            run.wait(self._engine)

    def hold(self, held: bool) -> None:
        """Start no new background work, while the user is asked whether to quit; False continues."""
        self._engine.hold(held)

    @property
    def status(self) -> Status:
        """What the session is doing now."""
        entry = self.entry
        return self._training.present("" if entry is None else entry.key, self._predictor.fraction)

    @property
    def model(self) -> Model | OnnxModel | None:
        """The best model now, an immutable snapshot."""
        return self._training.model

    def use_model(self, model: Model | OnnxModel) -> None:
        """Use a model: predict with it, and continue from it when training starts.

        Its classes are matched by name with the session's; while nothing is labelled, its table replaces the session's.
        Its encoder becomes the session's setting: training with another one would start from scratch.
        """
        self._predictor.use(model)

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Load a model file and use it, see `use_model`."""
        self._predictor.load(Path(path))

    def save_model(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the current model as one ``.safetensors`` file; `ModelError` if another one is there."""
        self._predictor.save(Path(path), overwrite=overwrite)

    def export_model(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the current model for other programs: ``.onnx``, or a bioimage.io package ``.zip``."""
        self._predictor.export(Path(path), overwrite=overwrite)

    # Prediction

    def predict(self, box: tuple[int, int, int, int], mpp: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict a level-0 box (y, x, height, width) of the active slide; `PredictionError` without a model.

        Parameters
        ----------
        mpp
            Resolution of the result, um per pixel; None: the model's own.

        Returns
        -------
        labels, probabilities
            uint8 (h, w) class ids; float32 (K, h, w) in the order of the model's classes.
        """
        return self._predictor.predict(box, mpp)

    def next_region(self) -> Suggestion | None:
        """Unlabelled tissue of the active slide where the model is least certain; None when none is left.

        Each call suggests another region. It predicts a few patches: call it off the GUI thread.
        """
        return self._predictor.next_region()

    def review(self) -> list[Mistake]:
        """Held-out strokes of all open slides that the model gets wrong, worst first.

        It changes during training. `PredictionError` without a model or held-out strokes. Call it off the GUI thread.
        """
        return self._predictor.review()

    def accept_region(self, at: tuple[float, float]) -> Component:
        """Make the predicted region around a level-0 (y, x) of the active slide a dense region; see `Clicks.accept`.

        `PredictionError` without a model or outside the slide. Call it off the GUI thread.
        """
        return self.clicks.accept([at])[0]

    @property
    def live(self) -> LiveView | None:
        """The live prediction of the active slide; None until there is a model."""
        return self._live.view

    @property
    def live_enabled(self) -> bool:
        """Whether the view is predicted and strokes are learned at once, also while no training runs."""
        return self._live.enabled

    @live_enabled.setter
    def live_enabled(self, on: bool) -> None:
        self._live.enabled = self._training.follow_strokes = on
        self._engine.wake()

    def look_at(self, box: tuple[int, int, int, int], pixel_size: float) -> None:
        """Set what is on screen: level-0 box of the active slide, level-0 pixels per screen pixel."""
        self._live.look_at(Box(*box), pixel_size)
        if self._live.enabled:
            self._engine.wake()

    def predict_slide(
        self,
        out: str | os.PathLike[str],
        options: PredictOptions | None = None,
        *,
        slide: Slide | None = None,
        progress: Callable[[Progress], None] | None = None,
        stop: threading.Event | None = None,
        **settings: Unpack[PredictSettings],
    ) -> SlideResult:
        """Predict a whole slide into ``OUT.ome.zarr`` or ``OUT.ome.tif``; training pauses meanwhile.

        Parameters
        ----------
        out
            Label image of class ids: the slide's level-0 frame scaled to the prediction's mpp.
        options, **settings
            See `PredictOptions`; fields given by name replace those of `options`.
        slide
            An open slide; None: the active one.
        progress
            Called on this thread, at most ten times a second.
        stop
            Set it from another thread to end the run after the current tile; `resume` continues it.

        Raises
        ------
        PredictionError
            When there is no model, the output exists or cannot be written; `PredictionStopped` when `stop` was set.
        """
        return self._predictor.whole_slide(Path(out), options, settings, slide=slide, progress=progress, stop=stop)

    def predict_project(
        self,
        folder: str | os.PathLike[str],
        options: PredictOptions | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        stop: threading.Event | None = None,
        **settings: Unpack[PredictSettings],
    ) -> BatchResult:
        """Predict every open slide into a folder: image, objects, table, and one ``summary.csv``; see `predict_slide`.

        A slide that fails does not prevent the others.
        """
        return self._predictor.all_slides(Path(folder), options, settings, progress=progress, stop=stop)

    # Project

    @property
    def project(self) -> Path | None:
        """The project folder, a recovery folder until the session is saved, or None while nothing is on disk."""
        return None if self._keeper.project is None else self._keeper.project.path

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None; `ProjectError` if it is a link out of the project."""
        return self._keeper.checkpoint

    @property
    def notes(self) -> tuple[str, ...]:
        """What was missing, incomplete or left out when the project and its slides were opened."""
        return tuple(self._keeper.notes)

    def save(self, project: str | os.PathLike[str], *, exists: Exists = "refuse") -> None:
        """Save as a project folder, wholly or not at all; from then on every stroke is saved there at once.

        In its own project this writes what failed before. Another one is an error unless `exists` is ``replace``, which
        moves it aside, or ``merge``, which adds to it and leaves its annotation files beside.
        """
        self._keeper.save_as(Path(project), exists)
        self._predictor.follow_classes()
        self.runs.save_last()
        self._keeper.discard()

    @classmethod
    def load(cls, project: str | os.PathLike[str], *, autosave: bool = False, read_only: bool = False) -> Session:
        """Open a project: slides, annotations, settings and the last model.

        Slides and a model that cannot be opened are left out, see `notes` and ``status.message``. A project that is
        open elsewhere or is not writable is opened read-only; with `read_only` it is neither locked nor changed, and
        changes made here are not saved. `ProjectError` when the folder is not a project, or is damaged.
        """
        session = cls(autosave=autosave)
        try:
            notes = session._keeper.open_project(project, read_only=read_only)
            session._training.note("; ".join((*notes, *session.runs.load_last(session.load_model))))
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Stop with a checkpoint, end the background thread, close all files. Safe to call twice."""
        if self._slides.closed:
            return
        self._slides.closed = True
        # otherwise a refit or a tile could come between the end of the run and that of the thread
        self._live.enabled = self._training.follow_strokes = False
        self._engine.hold(False)
        run = self._training.stop()
        if run is not None:
            self._engine.wake()
            run.done.wait(timeout=5.0)
        if self._engine.close():
            self._training.rest()
        self._keeper.close()

    def _emit_status(self) -> None:
        self.status_changed.emit(self.status)

    def _on_annotated(self) -> None:
        try:
            self._keeper.write_changes()
        except ProjectError as error:  # the stroke is in its own file, and may not fail for this
            self._training.note(str(error))
        self._engine.wake()
        self.annotated.emit()

    def _on_slides_changed(self) -> None:
        self._emit_status()
        self._engine.wake()
        self.slides_changed.emit()
