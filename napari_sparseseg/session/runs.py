"""Training runs: each is kept, and one can go back to any of them, name it, pass it on and compare it with another."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import ModelError, PredictionError, ProjectError, SparseSegError, TrainingError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.geometry import Box, Frame, Placement, tiles
from napari_sparseseg.session.project import Project
from napari_sparseseg.session.run_files import MODEL, KeptRun, RunFolder, RunStory, checked_name, link_or_copy

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.io.comparison import Agreement
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.persistence import ProjectKeeper
    from napari_sparseseg.session.prediction import Predictor
    from napari_sparseseg.session.slides import SlideCollection
    from napari_sparseseg.session.training import Run, Training
    from napari_sparseseg.slides import Slide

_log = logging.getLogger(__name__)
TILE = 512


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the models of two runs predict another class.

    Attributes
    ----------
    labels
        uint8 (h, w): 0 where they agree, else an id of `classes`.
    classes
        A class for each pair that occurs: ``tumour > stroma`` is tumour by the first, stroma by the second.
    box, frame
        Where `labels` lie, in pixels of the frame.
    agreement
        Confusion, Dice by class and kappa over these pixels; the first run in the place of the truth.
    """

    labels: NDArray[np.uint8]
    classes: tuple[ClassDef, ...]
    box: Box
    frame: Frame
    agreement: Agreement


class TrainingRuns:
    """The training runs of a project, or of work that was not saved yet; `Session.runs`.

    Every run that ends, or is stopped, is kept with its model, settings, curves and held-out scores in the project's
    folder ``runs``. Beyond 20 runs or 2 GB the oldest are deleted, but never one with a name, the newest, or the one
    whose model serves.

    Parameters
    ----------
    slides, training, keeper, predictor, engine
        Of the session.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> from napari_sparseseg.samples import sample_scribbles, sample_slide
    >>> with Session() as session:
    ...     slide = session.open(sample_slide())
    ...     added = session.import_annotations(sample_scribbles())
    ...     for balancing in ("none", "instance"):
    ...         session.train(balancing, steps=1, mpp=8.0, wait=True)
    ...     new, old = session.runs.list()
    ...     session.runs.rename(old.id, "first try")
    ...     session.runs.compare(old.id, new.id)["balancing"]
    ...     undone = session.runs.undo()
    ...     undone, session.runs.list()[1].title, session.runs.in_use == old.id
    ('none', 'instance')
    ('undo training', 'first try', True)
    """

    def __init__(
        self,
        slides: SlideCollection,
        training: Training,
        keeper: ProjectKeeper,
        predictor: Predictor,
        engine: Engine,
    ) -> None:
        self._slides, self._training, self._keeper = slides, training, keeper
        self._predictor, self._engine = predictor, engine
        self._parents: dict[str, str] = {}
        self.problems: tuple[str, ...] = ()
        """What is wrong with runs that `list` left out, one clause each."""
        training.keep = self._keep

    def list(self) -> tuple[KeptRun, ...]:
        """All runs, newest first. It reads the head of every model file: call it off the GUI thread."""
        folder = self._folder
        runs, self.problems = ((), ()) if folder is None else folder.read()
        return runs

    @property
    def in_use(self) -> str:
        """Id of the run whose model serves now, or that it comes from by strokes drawn since; empty: none."""
        return self._training.lineage if self._training.model is not None else ""

    @property
    def next_undo(self) -> str:
        """What `undo` would do, for the user: ``undo training``; empty: nothing."""
        before = self._training.before
        if before is not None:
            return before.act
        return "undo training" if self._earlier() else ""

    def use(self, run_id: str) -> None:
        """Go back, or forward, to a run: its model predicts from now on, and training continues from it.

        Strokes are not learned by it until `Session.train`. `undo` takes it back.

        Raises
        ------
        ProjectError
            Where there is no such run.
        ModelError
            Where its model cannot be read.
        TrainingError
            While training runs.
        """
        run = self._run(run_id)
        self._require_idle()
        self._serve(self._predictor.read(run.model), run_id, f"undo going to {run.title}")

    def undo(self) -> str:
        """Take back the last training run, or what `use` did last; once more makes it again. Returns what was done.

        The model that served before serves again, also what it had learned from strokes between two runs.

        Raises
        ------
        TrainingError
            Where there is nothing to undo, or training runs.
        """
        self._require_idle()
        before, act = self._training.before, self.next_undo
        if not act:
            raise TrainingError("there is no earlier model to go back to.")
        back = act.replace("undo", "redo", 1) if act.startswith("undo") else act.replace("redo", "undo", 1)
        if before is not None:
            self._serve(before.model, before.lineage, back)
        else:
            earlier = self._run(self._earlier())
            self._serve(self._predictor.read(earlier.model), earlier.id, back)
        return act

    def rename(self, run_id: str, name: str) -> None:
        """Name a run, which keeps it for ever; an empty name takes the name away.

        Raises
        ------
        ProjectError
            Where another run has this name, it cannot be used, or the project cannot be written to.
        """
        self._slides.require_open()
        folder, run, name = self._require_folder(), self._run(run_id), checked_name(name)
        if self._keeper.read_only:
            raise ProjectError(f"the project {self._keeper.read_only}; its runs cannot be named.")
        if name and any(r.story.name.casefold() == name.casefold() and r.id != run_id for r in self.list()):
            raise ProjectError(f"there is a run {name!r} already; choose another name.")
        try:
            folder.describe(run_id, replace(run.story, name=name))
        except OSError as error:
            raise ProjectError(f"the run could not be named: {error.strerror or error}.") from error

    def export(self, run_id: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model of a run as one ``.safetensors`` file; see `export_run`."""
        export_run(self._run(run_id), path, overwrite=overwrite)

    def compare(self, a: str, b: str) -> dict[str, tuple[Any, Any]]:
        """Settings, data and held-out scores of two runs, side by side; see `side_by_side`."""
        return side_by_side(self._run(a), self._run(b))

    def difference(
        self, a: str, b: str, box: tuple[int, int, int, int], mpp: float | None = None, *, slide: Slide | None = None
    ) -> Difference:
        """Predict a box of an open slide with two runs and say where they differ; call it off the GUI thread.

        Parameters
        ----------
        a, b
            Ids of the runs.
        box
            Level-0 (y, x, height, width).
        mpp
            Resolution, um per pixel; None: that of the coarser model.
        slide
            None: the active one.

        Raises
        ------
        PredictionError
            Where the two have no class in common.
        """
        from napari_sparseseg.io.comparison import LabelReader, Pair, compare, difference_table
        from napari_sparseseg.io.measurements import WHOLE_SLIDE

        chosen = [self._run(run_id) for run_id in (a, b)]
        slide = self._slides.entry_of(slide).slide
        known = [r.metadata.mpp for r in chosen if r.metadata.mpp is not None]
        frame = slide.frame(mpp or max(known, default=None))
        region = frame.region(Box(*box)).intersection(Box(0, 0, *frame.shape(slide.shape)))
        if not region.area:
            raise PredictionError("that part lies outside the slide.")
        first, second = (LabelReader(r.title, r.classes, self._labels(r, slide, region, frame)) for r in chosen)
        pair = Pair(first, second, Placement(frame, slide.mpp), (region.height, region.width))
        found = compare(pair, {})
        table, classes = difference_table(pair.classes, found.counts[WHOLE_SLIDE])
        labels = np.zeros(pair.shape, np.uint8)
        for block, ids, others in pair.blocks():
            labels[block.slices()] = table[ids, others]
        return Difference(labels, classes, region, frame, found)

    def load_last(self, load: Callable[[Path], None]) -> tuple[str, ...]:
        """Load the project's model; says what keeps it from being used, which keeps nobody from the annotations."""
        try:
            if self._keeper.checkpoint is not None:
                load(self._keeper.checkpoint)
                self._training.lineage = self._require_folder().in_use
        except SparseSegError as error:
            _log.warning("the model of %s is left out: %s", self._keeper.project, error)
            return (f"its model is left out: {error}",)
        return ()

    def save_last(self) -> None:
        """Write the model that serves, if there is one, as that of the project."""
        project = self._keeper.project
        if project is not None and self._training.model is not None:
            self._predictor.save(project.checkpoint, overwrite=True)
            RunFolder(project.path).in_use = self._training.lineage

    def _labels(self, run: KeptRun, slide: Slide, region: Box, frame: Frame) -> NDArray[np.uint8]:
        """What a run predicts; in pieces, between which training and the live view go on."""
        from napari_sparseseg.prediction.tiles import model_frame, predict_region

        model = self._predictor.read(run.model)
        seen = model_frame(model.metadata, slide, frame)
        labels = np.zeros((region.height, region.width), np.uint8)
        for cell in tiles(region, TILE):
            part = cell.intersection(region)
            found = self._engine.call(partial(predict_region, model, slide, part, frame, read_frame=seen))
            labels[part.y - region.y : part.y1 - region.y, part.x - region.x : part.x1 - region.x] = found[0]
        return labels

    def _serve(self, model: Model | OnnxModel, lineage: str, act: str) -> None:
        """Predict with a model that was there before, and let it be the one that a project opens with."""
        training, before = self._training, self._training.served(act)
        self._predictor.use(model, stay=True)
        training.lineage, training.before = lineage, before
        self._engine.call(lambda: self._keeper.write_checkpoint(self._write))

    def _write(self, project: Project) -> None:
        self._training.save(project.checkpoint)
        RunFolder(project.path).in_use = self._training.lineage

    def _keep(self, run: Run, project: Project) -> None:
        """Write the model of a run that has ended, as a run and as the project's (engine thread).

        The run comes first, so that a kill in between loses nothing. Where it cannot be kept, the model is written as
        if there were no runs.
        """
        training, folder = self._training, RunFolder(project.path)
        if not training.learned(run):
            training.save(project.checkpoint)
            return
        try:
            lineage = run.lineage or self._keep_first(run, folder)
            story = RunStory(
                ended=time.time(), seconds=run.spent, before=lineage, losses=run.losses.points, scores=run.scores.points
            )
            new = folder.add(training.save, story)
            link_or_copy(folder.file(new), project.checkpoint)
            folder.in_use = training.lineage = new
            folder.prune({new, lineage})
        except (OSError, SparseSegError) as error:
            reason = f"{error.strerror or error}." if isinstance(error, OSError) else str(error)
            _log.warning("the run is not kept: %s", reason)
            training.save(project.checkpoint)
            training.note(f"this training run is not in the list of runs: {reason}")

    def _keep_first(self, run: Run, folder: RunFolder) -> str:
        """Keep the model that a run began with where it is of no run, such as one that was loaded; its id."""
        if run.model is None:
            return ""
        return folder.add(run.model.save, RunStory(ended=time.time(), trained=False))

    def _earlier(self) -> str:
        """Id of the run that the present one continued from, where it is still there."""
        folder, lineage = self._folder, self.in_use
        if folder is None or not lineage:
            return ""
        if lineage not in self._parents:
            before = folder.story(lineage).before
            self._parents[lineage] = before if before and folder.file(before).exists() else ""
        return self._parents[lineage]

    @property
    def _folder(self) -> RunFolder | None:
        project = self._keeper.project
        return None if project is None else RunFolder(project.path)

    def _require_folder(self) -> RunFolder:
        folder = self._folder
        if folder is None:
            raise ProjectError("there are no runs yet.")
        return folder

    def _run(self, run_id: str) -> KeptRun:
        return self._require_folder().run(run_id)

    def _require_idle(self) -> None:
        self._slides.require_open()
        if self._training.run is not None:
            raise TrainingError("training is running; stop it first.")


def project_runs(project: str | os.PathLike[str]) -> tuple[KeptRun, ...]:
    """The runs of a project that is not open here, newest first; the project is neither locked nor changed.

    Raises
    ------
    ProjectError
        Where it is no project.
    """
    return RunFolder(Project.open(project).path).read()[0]


def find_run(runs: Sequence[KeptRun], text: str) -> KeptRun:
    """The run with this name or id, or whose id begins with it.

    Raises
    ------
    ProjectError
        Where there is none, or several.
    """
    wanted = text.strip().casefold()
    found = [r for r in runs if wanted and wanted in (r.id, r.story.name.casefold())]
    found = found or [r for r in runs if wanted and r.id.startswith(wanted)]
    if len(found) != 1:
        listed = ", ".join(r.story.name or r.id for r in runs) or "none"
        raise ProjectError(f"there {'are several runs' if found else 'is no run'} {text!r:.100}; runs: {listed}.")
    return found[0]


def export_run(run: KeptRun, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the model of a run as one ``.safetensors`` file.

    Raises
    ------
    ModelError
        Where a file is there that may not be overwritten, or it cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != MODEL:
        raise ModelError(f"{target} must end in {MODEL}.")
    if target.exists() and not overwrite:
        raise ModelError(f"{target} exists already; choose another name, or ask to overwrite it (overwrite=True).")
    try:
        write_atomic(target, lambda part: shutil.copyfile(run.model, part))
    except OSError as error:
        raise ModelError(f"model {target} cannot be written: {error.strerror or error}.") from error


def side_by_side(a: KeptRun, b: KeptRun) -> dict[str, tuple[Any, Any]]:
    """Held-out scores, settings and data of two runs by what they are called.

    A score, or the strokes of a slide, that one of them does not have is None. A slide's annotation version grows with
    every stroke.
    """
    facts = _facts(a), _facts(b)
    return {name: (facts[0].get(name), facts[1].get(name)) for name in {**facts[0], **facts[1]}}


def _facts(run: KeptRun) -> dict[str, Any]:
    metadata = run.metadata
    facts: dict[str, Any] = {"held-out Dice": run.dice}
    classes = metadata.metrics.get("classes")
    for name, scores in classes.items() if isinstance(classes, dict) else ():
        facts[f"Dice of {name}"] = scores.get("dice") if isinstance(scores, dict) else None
    facts |= {"steps": metadata.step, "seconds": round(run.story.seconds, 1), "um per px": metadata.mpp}
    facts |= {k: v for k, v in asdict(metadata.config).items() if k != "mpp"}
    facts["classes"] = ", ".join(c.name for c in metadata.classes)
    for source in metadata.sources:
        facts[f"strokes on {source.get('name')}"] = source.get("strokes")
        facts[f"annotation version of {source.get('name')}"] = source.get("annotations")
    return facts
