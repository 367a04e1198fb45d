"""What the engine thread does for learning: refit after a stroke, step while training, publish the better model."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SlideClosedError, SparseSegError, TrainingError
from napari_sparseseg.session.engine import wait_alive
from napari_sparseseg.session.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.holdout import HeldOut
    from napari_sparseseg.learning.learner import Learner
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.project import Project
    from napari_sparseseg.session.slides import SlideCollection, TrainingData, Versions

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Curve:
    """Points over time, every other one dropped where there would be too many."""

    most: int = 400
    _every: int = 1
    _seen: int = 0
    _points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """(seconds, value) pairs, at most `most`."""
        return tuple(self._points)

    def add(self, seconds: float, value: float) -> None:
        """Add a point."""
        if self._seen % self._every == 0:
            self._points.append((seconds, value))
        self._seen += 1
        if len(self._points) >= self.most:
            del self._points[1::2]
            self._every *= 2


@dataclass(frozen=True, slots=True)
class Served:
    """A model that served before."""

    model: Model | OnnxModel
    lineage: str
    """Id of the kept run that it is of, or comes from; or empty."""
    act: str
    """What going back to it is called: ``undo training``."""


@dataclass(slots=True)
class Run:
    """One training run: its budget, its patience, its end, and its curves.

    Attributes
    ----------
    model, lineage
        What served when it began, and the kept run that this comes from.
    """

    config: TrainConfig
    seconds: float | None = None
    steps: int | None = None
    patience: int | None = None
    model: Model | OnnxModel | None = None
    lineage: str = ""
    spent: float = 0.0
    first_step: int | None = None
    """The learner's count when it began; None until then."""
    paused: bool = False
    stopping: bool = False
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    losses: Curve = field(default_factory=Curve)
    scores: Curve = field(default_factory=Curve)

    def finished(self, step: int, stale: int = 0) -> bool:
        """Whether the budget is used up, nothing was gained for long, or somebody asked to stop."""
        return (
            self.stopping
            or (self.patience is not None and stale >= self.patience)
            or (self.seconds is not None and self.spent >= self.seconds)
            or (self.steps is not None and self.first_step is not None and step - self.first_step >= self.steps)
        )

    def wait(self, engine: Engine, *, alive: bool = False) -> None:
        """Wait for the end, and raise the error that ended the run; `alive` keeps a window going (`stay_alive`)."""
        while not (wait_alive if alive else threading.Event.wait)(self.done, 0.2):
            if not engine.running:
                raise TrainingError("the training thread has ended; open a new session.")
        if self.error is not None:
            raise self.error


class Training:
    """Owns the settings, the learner and the current run. Workers run on the engine thread, the rest on any.

    Parameters
    ----------
    slides
        Where the training sources come from.
    settings
        Of the next run.
    publish
        Called, mostly on the engine thread, whenever `status` or the run changes.

    Attributes
    ----------
    write_checkpoint
        Called when a run ends, with what writes the model into a project.
    keep
        Called by that: writes the model of a run, and keeps the run.
    lineage
        Id of the kept run that the present model is of, or comes from by strokes; empty: none.
    before
        What served before the last run, or before the last return to another; None where that is not known.
    """

    def __init__(self, slides: SlideCollection, settings: TrainConfig, publish: Callable[[], None]) -> None:
        self._slides, self._publish = slides, publish
        self.write_checkpoint: Callable[[Callable[[Project], None]], None] = lambda save: None
        self.keep: Callable[[Run, Project], None] = lambda run, project: self.save(project.checkpoint)
        self.lineage = ""
        self.before: Served | None = None
        self._settings, self._requested = settings, {settings.encoder}
        self._learner: Learner | None = None
        self._run: Run | None = None
        self._origin: Model | None = None
        """What the next learner continues from, also after one that produced no model."""
        self._fitted: Versions = ()
        self._closed_at: Versions = ()
        self._begin_lock = threading.Lock()
        self.seen: Versions = ()
        self.model: Model | OnnxModel | None = None
        self._exported: Model | OnnxModel | None = None
        self.follow_strokes = False
        self.config: TrainConfig | None = None
        """What the present learner was made with."""
        self.status = Status()

    @property
    def settings(self) -> TrainConfig:
        """The settings of the next run; an encoder assigned here counts as requested by the user."""
        return self._settings

    @settings.setter
    def settings(self, settings: TrainConfig) -> None:
        self._slides.require_open()
        if settings.encoder != self._settings.encoder:
            self._requested.add(settings.encoder)
        self._settings = settings

    def recall(self, settings: TrainConfig) -> None:
        """Take settings from a project or a model: the user did not ask for their encoder by name."""
        self._settings = settings

    @property
    def run(self) -> Run | None:
        """The present run, or None."""
        return self._run

    @property
    def held(self) -> HeldOut | None:
        """What the learner holds out now; None without a learner (engine thread)."""
        return None if self._learner is None else self._learner.held

    def present(self, key: str, slide_progress: float | None) -> Status:
        """The status now, for the slide with this key; `slide_progress` is not None while a slide is predicted."""
        status, run = self.status, self._run
        if slide_progress is not None:
            status = replace(status, state="predicting", progress=slide_progress)
        elif run is not None:
            status = replace(status, state="paused" if run.paused else "training", budget_seconds=run.seconds)
            if run.first_step is None:  # what the run before said last is not this one's
                status = replace(status, loss=None, seconds=0.0)
        elif status.state != "failed":
            status = replace(status, state="idle")
        return replace(status, live_annotation_version=dict(self.seen).get(key, 0))

    def start(self, values: Mapping[str, Any], seconds: float | None, steps: int | None, patience: int | None) -> Run:
        """Begin a run with the settings changed by `values`; see `Session.train`."""
        self._slides.require_open()
        settings = self._settings.updated(values)
        if "encoder" in values:
            self._requested.add(settings.encoder)
        self._require_requested(settings)
        self._slides.require_two_classes()
        run = Run(settings, seconds, steps, patience, self.model, self.lineage)
        with self._begin_lock:
            if self._run is not None:
                raise TrainingError("training is running already; stop it before starting again.")
            self._run = run
        self.settings = settings
        _log.info("training with %s", settings)
        self._fitted = ()  # refit even where no stroke was added
        return run

    def stop(self) -> Run | None:
        """Ask the current run to end; returns it."""
        run = self._run
        if run is not None:
            run.stopping = True
        return run

    def set_paused(self, paused: bool) -> None:
        """Pause or resume the current run, if there is one."""
        self._slides.require_open()
        if self._run is not None:
            self._run.paused = paused
        self._publish()

    def note(self, message: str) -> None:
        """Show a message in the status."""
        self.status = replace(self.status, message=message)

    def use_model(self, model: Model | OnnxModel, *, stay: bool = False) -> None:
        """Show a model and continue from it when training starts, if it can be trained (engine thread).

        With `stay`, and where it cannot be trained, no stroke refits it until training is asked for.
        """
        from napari_sparseseg.learning.model import Model

        self.rest()
        self._learner, self._origin = None, model if isinstance(model, Model) else None
        if self._origin is None or stay:
            self.config = None
        self._fitted = self.seen = ()
        self.lineage, self.before = "", None
        self._show(model)

    def served(self, act: str) -> Served | None:
        """The present model, to come back to."""
        return None if self.model is None else Served(self.model, self.lineage, act)

    def learned(self, run: Run) -> bool:
        """Whether a run has made a model (engine thread)."""
        made = None if self._learner is None else self._learner.model
        return made is not None and made is not run.model

    @staticmethod
    def warm_up() -> None:
        """Tune the process and import the network libraries (engine thread); it takes seconds."""
        from napari_sparseseg.learning.torch_runtime import import_torch, tune_process

        tune_process()
        import_torch()
        import_module("napari_sparseseg.learning.learner")

    def rest(self) -> None:
        """End the learner's own thread while nothing is trained (engine thread, or after its end)."""
        if self._learner is not None:
            self._learner.stop_reading()

    def refit_worker(self) -> bool:
        """Refit the instant head where strokes have come or gone since; engine thread."""
        run = self._run
        if (run is None or run.paused) and not self.follow_strokes:
            return False
        if run is not None and run.finished(self.status.step):
            return False
        versions = self._slides.versions()
        if versions == self._fitted or (self.config is None and run is None):
            return False
        config = run.config if run is not None else self.config
        snapshot = self._slides.snapshot(config)  # type: ignore[arg-type]
        learner = self._ensure_learner(config, snapshot.classes)  # type: ignore[arg-type]
        # The clock of a run starts here: importing torch and building the encoder does not count.
        started = time.monotonic()
        self._refit(learner, snapshot)
        if run is not None:
            run.spent += time.monotonic() - started
        return True

    def end_worker(self) -> bool:
        """Finish a stopped run before any other work, so that closing napari is quick; engine thread."""
        from napari_sparseseg.learning.distributed import ranks

        run = self._run
        if run is None or not run.stopping or ranks().world > 1:  # several ranks end together, in `train_worker`
            return False
        self._finish(run)
        return True

    def train_worker(self) -> bool:
        """One fine step, or the end of a run whose budget is used up; engine thread."""
        run = self._run
        if run is None:
            return False
        learning = self._learner is not None and self._learner.model is not None
        if self._ending(run, learning):
            self._finish(run)
            return True
        if run.paused or self._learner is None or not learning:
            return False
        if run.first_step is None:
            run.first_step = self._learner.step_count
        started = time.monotonic()
        report = self._learner.step()
        run.spent += time.monotonic() - started
        if report.loss is not None:
            run.losses.add(run.spent, report.loss)
        if report.validation and (dice := report.validation.get("balanced_dice")) is not None:
            run.scores.add(run.spent, dice)
        status = replace(self.status, state="training", step=report.step, loss=report.loss, seconds=run.spent)
        if report.message:  # memory ran out, or training went back after NaN
            _log.warning(report.message)
        self._set(replace(status, message=report.message or self._learner.note))
        self._take_model()
        return True

    def _ending(self, run: Run, learning: bool) -> bool:
        """Whether a run ends now; of several ranks all end together, as the next batch tells them."""
        from napari_sparseseg.learning.distributed import ranks

        mine, stale = ranks(), self._learner.schedule.stale if self._learner is not None else 0
        finished = run.finished(self.status.step, stale)
        mine.leaving = mine.leaving or (mine.world > 1 and finished)
        if mine.world > 1 and learning:
            return mine.ended
        return finished

    def fail(self, error: Exception) -> None:
        """End the run with an error that the user sees; the rest of the session goes on (engine thread).

        A slide that was closed while it was read is no error: the next turn goes on with the others.
        """
        versions = self._slides.versions()
        if isinstance(error, SlideClosedError) and versions != self._closed_at:
            self._closed_at, self._fitted = versions, ()
            return
        run, self._run = self._run, None
        self.rest()
        # Without this a failing refit would be asked for again at once, for ever.
        self._fitted = versions
        details = "".join(traceback.format_exception(error))
        text = _explain(error)
        if run is not None:
            run.error = error
        try:
            self._set(replace(self.status, state="failed", message=text, details=details))
        finally:
            if run is not None:
                run.done.set()

    @property
    def exported(self) -> bool:
        """Whether the current model was written where the user asked for it."""
        return self.model is not None and self._exported is self.model

    def export(self, path: Path) -> None:
        """Write the current model where the user asked for it (engine thread)."""
        self.save(path)
        self._exported = self.model

    def save(self, path: Path) -> None:
        """Write the present model and, where there is one, the learner's state (engine thread)."""
        if self._learner is not None and self._learner.model is not None:
            self._learner.checkpoint(path)
            self._take_model()  # what is on disk is what predicts from now on
        elif self.model is not None:
            self.model.save(path)

    def _ensure_learner(self, config: TrainConfig, classes: Sequence[ClassDef]) -> Learner:
        from napari_sparseseg.learning.learner import Learner

        if self._learner is None or not self._learner.reconfigure(config):
            self.rest()
            if self._learner is not None and self._learner.model is not None:
                self._origin = self._learner.model
            self._learner = Learner(config, classes, model=self._origin)
        self.config = config
        return self._learner

    def _refit(self, learner: Learner, snapshot: TrainingData) -> None:
        learner.set_classes(snapshot.classes)
        learner.set_sources(snapshot.sources)
        # Set before the fit: a stroke that lands meanwhile has a newer version and is fitted next turn.
        self._fitted = snapshot.versions
        model = learner.refit()
        _log.info("refitted to %d slides: %s", len(snapshot.sources), learner.note or "complete")
        self._set(replace(self.status, device=str(learner.device), message=learner.note))
        if model is not None:
            self.seen = snapshot.versions
            self._take_model(refitted=True)

    def _take_model(self, *, refitted: bool = False) -> None:
        learner = self._learner
        if learner is not None and learner.model is not None and (refitted or learner.model is not self.model):
            self._show(learner.model, metrics=learner.metrics)

    def _show(self, model: Model | OnnxModel, metrics: dict[str, object] | None = None) -> None:
        self.model = model
        version = self.status.model_version + 1
        self._set(replace(self.status, model_version=version, metrics=metrics or {}))

    def _finish(self, run: Run) -> None:
        self.rest()
        if self.learned(run):
            self.lineage = ""
            self.before = None if run.model is None else Served(run.model, run.lineage, "undo training")
        try:
            self.write_checkpoint(partial(self.keep, run))
        except (OSError, SparseSegError) as error:  # `fail` ends the run with it
            reason = f"{error.strerror or error}." if isinstance(error, OSError) else str(error)
            raise TrainingError(
                f"the model could not be saved: {reason} It is still in memory; save it elsewhere."
            ) from error
        self._run = None
        _log.info("training ended at step %d after %.0f s", self.status.step, run.spent)
        try:
            self._set(replace(self.status, state="idle", seconds=run.spent))
        finally:
            run.done.set()

    def _require_requested(self, settings: TrainConfig) -> None:
        """Projects are passed between people: an encoder is not downloaded only because a project names it."""
        metadata = None if self.model is None else self.model.metadata
        kind = None if metadata is None else metadata.extra["net"]["kind"]
        included = metadata is not None and kind == "pretrained" and metadata.encoder == settings.encoder
        if settings.fetches and settings.encoder not in self._requested and not included:
            raise TrainingError(
                f"the project asks for the encoder {settings.encoder!r}, and no model in it includes its weights. They "
                f"are downloaded only when you ask for them by name: train(encoder={settings.encoder!r}), or type its "
                "name in the panel; or choose another encoder."
            )

    def _set(self, status: Status) -> None:
        self.status = status
        self._publish()


def _explain(error: Exception) -> str:
    """What a user can make of an error."""
    from napari_sparseseg.learning.torch_runtime import out_of_memory

    if isinstance(error, SparseSegError):
        return str(error)
    if out_of_memory(error):
        return (
            f"there is not enough memory; close other programs, or lower batch_size or patch_px. ({str(error)[:200]})"
        )
    return f"{type(error).__name__}: {error}"
