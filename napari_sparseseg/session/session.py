"""The controller behind the panel, the console and the shell: whatever a button does, one method here does.

A `Session` owns the slides, their annotations, the engine thread and the model. Methods may be called from any thread
but the engine's; signals are emitted on the thread where the thing happened (connect with ``thread="main"`` in a GUI).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, TrainConfig
from napari_sparseseg.errors import SparseSegError, TrainingError
from napari_sparseseg.session.engine import Engine
from napari_sparseseg.session.live import LiveWorker
from napari_sparseseg.session.prediction import Predictor
from napari_sparseseg.session.prediction_session import PredictionSession
from napari_sparseseg.session.status import Status
from napari_sparseseg.session.training import LearningLoop, Run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


class Session(PredictionSession):
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
        super().__init__(classes, config=config, autosave=autosave)
        self._loop = LearningLoop(
            self.set.snapshot, self.set.versions, lambda _: self._emit_status(), self._keeper.checkpoint_path
        )
        self._live = LiveWorker(self.set, self._loop)
        self._live.changed.connect(self.live_changed.emit)
        learn, see = self._loop, self._live
        workers = (learn.end_worker, self.set.watch, learn.refit_worker, see.work, learn.train_worker)
        self._engine = Engine(workers, self._loop.fail)
        self._predictor = Predictor(self.set, self._loop, self._live, self._engine, self._emit_status)
        self._closed = False
        self.set.annotated.connect(self._engine.wake)
        self.set.changed.connect(self._on_slides_changed)

    # Training

    def train(
        self,
        balancing: str | None = None,
        *,
        seconds: float | None = None,
        steps: int | None = None,
        patience: int | None = None,
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
        patience
            End after so many comparisons on held-out strokes in a row that brought nothing better; the best model is
            kept in any case. None: go on, as strokes may still be drawn.
        wait
            Return only when the run has ended, and raise what ended it.
        **settings
            Other fields of `TrainConfig` (mpp, encoder, device, seed, ...), kept for later runs. An `encoder` named
            here is downloaded where it is not on this machine yet.

        Raises
        ------
        TrainingError
            When fewer than two classes are labelled, training runs already, or an encoder is needed that only the
            project names.
        """
        config = self.config.updated(settings if balancing is None else {**settings, "balancing": balancing})
        if "encoder" in settings:
            self._named.add(config.encoder)
        self._require_named(config)
        self.set.require_two_classes()
        run = Run(config, seconds, steps, patience)
        self._loop.begin(run)
        self.config = config
        self._loop.forget_fit()
        self._engine.wake()
        self._emit_status()
        if wait:
            self._wait(run)

    def warm_up(self) -> None:
        """Import the network libraries now, in the background; the first training need not wait for that then."""
        self._engine.submit(self._loop.warm_up)

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

    # Status, project, end

    @property
    def status(self) -> Status:
        """What is going on now."""
        entry = self.set.current
        return self._loop.present("" if entry is None else entry.key, self._predictor.fraction)

    def save(self, project: str | os.PathLike[str]) -> None:
        """Save as a project folder (made where it does not exist); from then on every stroke goes there at once."""
        saved = self._keeper.save_as(Path(project))
        if self.model is not None:
            self.save_model(saved.checkpoint)

    @classmethod
    def load(cls, project: str | os.PathLike[str], *, autosave: bool = False, read_only: bool = False) -> Session:
        """Open a project: slides, annotations, settings and the last model.

        With `read_only` nothing in it is changed, and it can be open elsewhere; what is done here is kept nowhere.
        Slides that cannot be opened, or were replaced by others, are left out and stay listed; so is a model that
        cannot be loaded; a project that is open elsewhere or may not be written to is opened read-only. All that is
        said in ``status.message``.
        """
        session = cls(autosave=autosave)
        try:
            notes = session.open_recorded(project, read_only=read_only)
            notes += _load_checkpoint(session)
        except BaseException:
            session.close()
            raise
        session._loop.status = replace(session._loop.status, message="; ".join(notes))
        return session

    def hold(self, held: bool) -> None:
        """Begin nothing new while the user is asked whether to end it all; with False it goes on as before."""
        self._engine.hold(held)

    def close(self) -> None:
        """Stop with a checkpoint, end the thread, close all files. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        # else a refit or a tile may come between the end of the run and that of the thread
        self._live.enabled = self._loop.follow_strokes = False
        self._engine.hold(False)
        run = self._loop.run
        if run is not None:
            run.stopping = True
            self._engine.wake()
            run.done.wait(timeout=5.0)
        if self._engine.close():
            self._loop.rest()
        super().close()

    def _wait(self, run: Run) -> None:
        while not run.done.wait(0.2):
            if not self._engine.running:
                raise TrainingError("the training thread has ended; open a new session.")
        if run.error is not None:
            raise run.error

    def _require_named(self, config: TrainConfig) -> None:
        """Projects are passed between people: what they name is neither downloaded nor read for that."""
        metadata = None if self.model is None else self.model.metadata
        kind = None if metadata is None else metadata.extra["net"]["kind"]
        brought = metadata is not None and kind == "pretrained" and metadata.encoder == config.encoder
        if config.fetches and config.encoder not in self._named and not brought:
            raise TrainingError(
                f"the project asks for the encoder {config.encoder!r}, and no model in it brings its weights. They are "
                f"fetched only when you ask for them by name: train(encoder={config.encoder!r}), or type it in the "
                "panel; or choose another encoder."
            )

    def _set_paused(self, paused: bool) -> None:
        run = self._loop.run
        if run is not None:
            run.paused = paused
            self._engine.wake()
        self._emit_status()

    def _emit_status(self) -> None:
        self.status_changed.emit(self.status)

    def _on_slides_changed(self) -> None:
        self._emit_status()
        self._engine.wake()


def _load_checkpoint(session: Session) -> list[str]:
    """Load a project's model; one that cannot be used here must not keep anyone from the annotations."""
    try:
        if session.checkpoint is not None:
            session.load_model(session.checkpoint)
    except SparseSegError as error:
        return [f"its model is left out: {error}"]
    return []
