"""The controller behind the panel, the console and the shell: whatever a button does, one method here does.

A `Session` owns the slides, their annotations, the engine thread and the model. Methods may be called from any thread
but the engine's; signals are emitted on the thread where the thing happened (connect with ``thread="main"`` in a GUI).
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_sparseseg import recovery
from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, TrainConfig
from napari_sparseseg.engine import Engine
from napari_sparseseg.errors import PredictionError, ProjectError, SparseSegError, TrainingError
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning_loop import LearningLoop, Run
from napari_sparseseg.live import LiveView
from napari_sparseseg.project import Project, ProjectState
from napari_sparseseg.slide_set import SlideEntry, SlideSet
from napari_sparseseg.status import Status

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import numpy as np

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.slides import Slide


class Session:
    """Slides, annotations, training and prediction.

    Parameters
    ----------
    classes
        The class table to begin with: names, (name, colour) pairs or `ClassDef`. The default has two classes.
    autosave
        Write every stroke to disk at once, into a recovery folder until the session is saved as a project. The panel
        does; scripts need not.

    Attributes
    ----------
    status_changed
        Signal (Status).
    live_changed
        Signal (): `live` is another object now; layers must be made anew.
    """

    status_changed = Signal(Status)
    live_changed = Signal()

    def __init__(
        self,
        classes: Iterable[ClassDef | tuple[str, str] | str] = DEFAULT_CLASSES,
        *,
        config: TrainConfig | None = None,
        autosave: bool = False,
    ) -> None:
        self.config = config or TrainConfig()
        self.set = SlideSet(classes)
        self._autosave = autosave
        self._project: Project | None = None
        self._live: LiveView | None = None
        self._live_of: tuple[object, ...] = ()
        self._live_enabled = False
        self._closed = False
        self._slide_progress: float | None = None
        self._loop = LearningLoop(
            self.set.snapshot, self.set.versions, lambda _: self._emit_status(), self._checkpoint_path
        )
        workers = (self._loop.refit_worker, self._live_worker, self._loop.train_worker)
        self._engine = Engine(workers, self._loop.fail)
        self.set.annotated.connect(self._engine.wake)
        self.set.changed.connect(self._on_slides_changed)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Slides and annotations

    def open(self, path: str | os.PathLike[str], *, role: str = "train") -> Slide:
        """Open a slide and make it the active one.

        Raises
        ------
        SlideOpenError
            When it is not a slide that can be opened.
        """
        known = len(self.set.entries)
        entry = self.set.open(path, role)  # type: ignore[arg-type]
        if len(self.set.entries) > known and (self._autosave or self._project is not None):
            self._attach(entry)
        return entry.slide

    @property
    def slide(self) -> Slide:
        """The active slide."""
        return self.set.active.slide

    @property
    def slides(self) -> tuple[Slide, ...]:
        """All open slides."""
        return tuple(e.slide for e in self.set.entries)

    @property
    def annotations(self) -> Annotations:
        """What is drawn on the active slide; assign another `Annotations` of the same shape to replace it."""
        return self.set.active.annotations

    @annotations.setter
    def annotations(self, annotations: Annotations) -> None:
        self.set.replace_annotations(self.set.active, annotations)
        if self._project is not None:
            self._attach(self.set.active)

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """The class table of all slides; assign to change it."""
        return self.set.classes

    @classes.setter
    def classes(self, classes: Sequence[ClassDef]) -> None:
        self.set.set_classes(classes)

    def import_annotations(self, path: str | os.PathLike[str]) -> None:
        """Replace the active slide's annotations by a file's (GeoJSON, ASAP XML, .sparseseg, label image).

        Classes are matched by name; names that are new join the table.
        """
        from napari_sparseseg.exchange import load_annotations

        entry = self.set.active
        others = [e for e in self.set.entries if e is not entry]
        fresh = not others and not any(entry.annotations.counts().values())
        self.annotations = load_annotations(path, entry.slide.shape, classes=() if fresh else self.classes)

    # Training

    def train(
        self,
        balancing: str | None = None,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        wait: bool = False,
        **settings: Any,
    ) -> None:
        """Train on everything labelled, in the background.

        Parameters
        ----------
        balancing
            ``none``, ``instance`` or ``mini-batch``; None keeps the session's setting.
        seconds, steps
            Budget of this run, pauses left out; without either it goes on until `stop`.
        wait
            Return only when the run has ended, and raise what ended it.
        **settings
            Other fields of `TrainConfig` (mpp, encoder, device, seed, ...), kept for later runs.

        Raises
        ------
        TrainingError
            When fewer than two classes are labelled, or training runs already.
        """
        known = {f.name for f in fields(TrainConfig)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TrainingError(f"unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}.")
        if balancing is not None:
            settings["balancing"] = balancing
        config = replace(self.config, **settings)
        self.set.require_two_classes()
        run = Run(config, seconds, steps, first_step=self._loop.status.step)
        self._loop.begin(run)
        self.config = config
        self._loop.forget_fit()
        self._engine.wake()
        self._emit_status()
        if wait:
            self._wait(run)

    def pause(self) -> None:
        """Hold training where it is."""
        self._set_paused(True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._set_paused(False)

    def stop(self, *, wait: bool = True) -> None:
        """End training after the step at hand and write a checkpoint; without a run nothing happens."""
        run = self._loop.run
        if run is None:
            return
        run.stopping = True
        self._engine.wake()
        if wait:
            self._wait(run)

    @property
    def checkpoint(self) -> Path | None:
        """The model file that the last run wrote, or None."""
        path = None if self._project is None else self._project.checkpoint
        return path if path is not None and path.exists() else None

    # Model and prediction

    @property
    def model(self) -> Model | None:
        """The best model now, an immutable snapshot."""
        return self._loop.model

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the present model as one ``.safetensors`` file."""
        self._require_model()
        self._engine.call(lambda: self._loop.save(Path(path)))

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Use a saved model: predict with it, and continue from it when training starts.

        Its classes are matched by name with the session's; with nothing labelled yet its table replaces the session's.
        """

        def load() -> Model:
            from napari_sparseseg.learning.model import load_model

            return load_model(Path(path), device=self.config.device)

        model = self._engine.call(load)
        labelled = any(any(e.annotations.counts().values()) for e in self.set.entries)
        classes, channels = _match_classes(self.classes if labelled else (), model.recipe.classes)
        self.classes = classes
        self._engine.call(lambda: self._loop.use_model(model.with_classes(channels)))

    def predict(self, box: tuple[int, int, int, int], mpp: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict a level-0 box of the active slide.

        Parameters
        ----------
        box
            (y, x, height, width) in level-0 pixels.
        mpp
            Resolution of the answer, um per pixel; None: the model's own.

        Returns
        -------
        labels
            uint8 (h, w), class ids.
        probabilities
            float32 (K, h, w), in the order of the model's classes.

        Raises
        ------
        PredictionError
            When there is no model yet.
        """
        from napari_sparseseg.inference import predict_region

        model, slide = self._require_model(), self.slide
        frame = slide.frame(mpp if mpp is not None else model.recipe.mpp)
        return self._engine.call(lambda: predict_region(model, slide, frame.region(Box(*box)), frame))

    def predict_slide(self, out: str | os.PathLike[str], **options: Any) -> Any:
        """Predict the whole active slide into ``OUT.ome.zarr`` or ``OUT.ome.tif``; training holds meanwhile.

        Options are those of `slide_prediction.predict_slide` (geojson, csv, mpp, resume, workers, scheduler, ...).
        """
        from napari_sparseseg.slide_prediction import predict_slide

        model, slide = self._require_model(), self.slide
        run = self._loop.run
        was_paused = run is None or run.paused
        report = options.pop("progress", None)

        def progress(state: Any) -> None:
            self._slide_progress = state.fraction
            self._emit_status()
            if report is not None:
                report(state)

        self._slide_progress = 0.0
        self._set_paused(True)
        try:
            return predict_slide(slide, model, Path(out), progress=progress, **options)
        finally:
            self._slide_progress = None
            self._set_paused(was_paused)

    # Live view

    @property
    def live(self) -> LiveView | None:
        """The live prediction of the active slide; None before there is a model."""
        return self._live

    @property
    def live_enabled(self) -> bool:
        """Whether what is on screen is predicted and strokes are learned at once, also when no training runs."""
        return self._live_enabled

    @live_enabled.setter
    def live_enabled(self, on: bool) -> None:
        self._live_enabled = self._loop.follow_strokes = on
        self._engine.wake()

    def wake(self) -> None:
        """Tell the engine that the live view wants something."""
        if self._live_enabled:
            self._engine.wake()

    # Status, project, end

    @property
    def status(self) -> Status:
        """What is going on now."""
        status = self._loop.status
        run = self._loop.run
        if self._slide_progress is not None:
            status = replace(status, state="predicting", progress=self._slide_progress)
        elif run is not None:
            status = replace(status, state="paused" if run.paused else "training", budget_seconds=run.seconds)
        elif status.state != "failed":
            status = replace(status, state="idle")
        seen = dict(self._loop.seen)
        version = seen.get(self.set.active.key, 0) if self.set.has_active else 0
        return replace(status, live_annotation_version=version)

    @property
    def project(self) -> Path | None:
        """The project folder, or None for a session that keeps nothing on disk yet."""
        return None if self._project is None else self._project.path

    def save(self, project: str | os.PathLike[str]) -> None:
        """Save as a project folder (made where it does not exist); from then on every stroke goes there at once."""
        path = Path(project)
        path = path if path.suffix == ".sparseseg" else path.with_name(path.name + ".sparseseg")
        before = self._project
        same = before is not None and before.path == path.resolve()
        target = before if same else (Project.open(path) if (path / "project.json").exists() else Project.create(path))
        if target is None:
            raise ProjectError(f"cannot save to {path}.")
        self._project = target
        for entry in self.set.entries:
            self._attach(entry, move=not same)
        self._write_project()
        if self.model is not None:
            self.save_model(target.checkpoint)
        if before is not None and not same:
            recovery.discard(before)

    @classmethod
    def load(cls, project: str | os.PathLike[str], *, autosave: bool = False) -> Session:
        """Open a project: slides, annotations, settings and the last model.

        Slides that have moved away are left out and named in ``status.message``.
        """
        opened = Project.open(project)
        session = cls(opened.state.classes, config=opened.state.config, autosave=autosave)
        session._project = opened
        missing = []
        for record in opened.state.slides:
            path = opened.locate(record)
            if path is None:
                missing.append(Path(record.path).name)
                continue
            slide = session.open(path, role=record.role)
            if record.mpp is not None and slide.mpp is None:
                slide.mpp = record.mpp
        if opened.checkpoint.exists():
            session.load_model(opened.checkpoint)
        if missing:
            session._loop.status = replace(
                session._loop.status, message=f"not found, left out: {', '.join(missing)}; open them to relink."
            )
        return session

    def close(self) -> None:
        """Stop with a checkpoint, end the thread, close all files. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        run = self._loop.run
        if run is not None:
            run.stopping = True
            self._engine.wake()
            run.done.wait(timeout=5.0)
        self._engine.close()
        empty = not any(any(e.annotations.counts().values()) for e in self.set.entries)
        self.set.close()
        if self._project is not None and empty and self.checkpoint is None:
            recovery.discard(self._project)

    # Inside

    def _wait(self, run: Run) -> None:
        while not run.done.wait(0.2):
            if not self._engine.running:
                raise TrainingError("the training thread has ended; open a new session.")
        if run.error is not None:
            raise run.error

    def _set_paused(self, paused: bool) -> None:
        run = self._loop.run
        if run is not None:
            run.paused = paused
            self._engine.wake()
        self._emit_status()

    def _require_model(self) -> Model:
        if self._loop.model is None:
            raise PredictionError("there is no model yet; train one or load one first.")
        return self._loop.model

    def _emit_status(self) -> None:
        self.status_changed.emit(self.status)

    def _on_slides_changed(self) -> None:
        self._emit_status()
        self._engine.wake()

    def _live_worker(self) -> bool:
        model = self._loop.model
        if not self._live_enabled or model is None or not self.set.has_active or self._slide_progress is not None:
            return False
        entry = self.set.active
        frame = entry.slide.frame(model.recipe.mpp)
        wanted = (entry.key, frame, model.recipe.classes)
        if wanted != self._live_of:
            view = self._live.view if self._live is not None and self._live_of[0] == entry.key else None
            self._live = LiveView(entry.slide, frame, len(model.recipe.classes))
            self._live_of = wanted
            if view is not None:
                self._live.request(view.box, view.pixel_size)
            self.live_changed.emit()
        if self._live is None:
            return False
        seen = dict(self._loop.seen).get(entry.key, 0)
        return self._live.work(model, self._loop.status.model_version, seen)

    def _checkpoint_path(self) -> Path:
        if self._project is None:
            self._project = recovery.new_recovery_project()
        self._write_project()
        return self._project.checkpoint

    def _attach(self, entry: SlideEntry, *, move: bool = False) -> None:
        if self._project is None:
            self._project = recovery.new_recovery_project()
        record = self._project.record_for(Path(entry.slide.path), entry.slide.fingerprint, entry.role)
        path = self._project.annotations_path(record)
        if move:
            entry.annotations.save(path)
        entry.annotations.attach(path)
        self._write_project()

    def _write_project(self) -> None:
        if self._project is None:
            return
        project = self._project
        records = [
            replace(project.record_for(Path(e.slide.path), e.slide.fingerprint, e.role), role=e.role, mpp=e.slide.mpp)
            for e in self.set.entries
        ]
        present = {r.fingerprint for r in records}
        missing = [r for r in project.state.slides if r.fingerprint not in present and project.locate(r) is None]
        project.write(ProjectState((*records, *missing), self.classes, self.config))


def _match_classes(
    ours: Sequence[ClassDef], theirs: Sequence[ClassDef]
) -> tuple[tuple[ClassDef, ...], tuple[ClassDef, ...]]:
    """The joint table, and the model's channels with our ids: matched by name, whatever the letter case."""
    if not ours:
        return tuple(theirs), tuple(theirs)
    table = list(ours)
    channels = []
    for c in theirs:
        known = next((o for o in table if o.name.casefold() == c.name.casefold()), None)
        if known is None:
            free = next((i for i in range(1, 256) if i not in {o.id for o in table}), None)
            if free is None:
                raise SparseSegError("the model's classes do not fit: there are 255 classes already.")
            known = ClassDef(free, c.name, c.colour)
            table.append(known)
        channels.append(known)
    return tuple(table), tuple(channels)
