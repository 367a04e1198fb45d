"""Training runs on disk: in a project's folder ``runs`` a model file for each, and beside it what that cannot say."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import ModelError, ProjectError, SparseSegError
from napari_sparseseg.files import is_link, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.model_file import ModelMetadata

FOLDER, IN_USE, MODEL, STORY = "runs", "in-use", ".safetensors", ".json"
MOST_RUNS, MOST_BYTES = 20, 2 << 30
"""Runs without a name beyond these are deleted, the oldest first."""
MOST_NAME, MOST_POINTS = 100, 400
_FORMAT, _VERSION = "napari-sparseseg run", 1
_MOST_JSON = 1 << 20
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class RunStory:
    """What a model file does not say of the run that made it.

    Attributes
    ----------
    name
        Given by the user, or empty.
    ended
        Seconds since 1970.
    seconds
        Of training, pauses left out.
    trained
        False: the model that was there before the first run that was kept.
    before
        Id of the run whose model it continued from; empty where there was none.
    losses, scores
        (seconds, balanced loss) and (seconds, mean held-out Dice), at most `MOST_POINTS` of each.
    """

    name: str = ""
    ended: float = 0.0
    seconds: float = 0.0
    trained: bool = True
    before: str = ""
    losses: tuple[tuple[float, float], ...] = ()
    scores: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A training run that was kept.

    Attributes
    ----------
    id
        Of the run, for `TrainingRuns`.
    model
        Its model file.
    size
        Of that file, bytes.
    story
        Its name, when it ended, and its curves.
    metadata
        What the model file says: classes, settings, held-out scores, steps, and of every slide the fingerprint, the
        version of its annotations and the number of strokes.
    """

    id: str
    model: Path
    size: int
    story: RunStory
    metadata: ModelMetadata

    @property
    def title(self) -> str:
        """Its name, or when it ended."""
        return self.story.name or f"{self.ended:%Y-%m-%d %H:%M:%S}"

    @property
    def ended(self) -> datetime:
        """When it ended, in local time."""
        return datetime.fromtimestamp(self.story.ended)

    @property
    def dice(self) -> float | None:
        """Mean held-out Dice of its model; None where nothing was held out."""
        value = self.metadata.metrics.get("balanced_dice")
        return None if value is None else float(value)

    @property
    def config(self) -> TrainConfig:
        """Its settings."""
        return self.metadata.config

    @property
    def classes(self) -> tuple[ClassDef, ...]:
        """Its classes."""
        return self.metadata.classes

    @property
    def strokes(self) -> int:
        """That it was trained on, held-out ones included."""
        return sum(n for s in self.metadata.sources if type(n := s.get("strokes")) is int)


class RunFolder:
    """The runs of one project.

    Parameters
    ----------
    project
        Its folder; ``runs`` in it is made with the first run.
    """

    def __init__(self, project: Path) -> None:
        self.path = project / FOLDER

    def read(self) -> tuple[tuple[KeptRun, ...], tuple[str, ...]]:
        """All runs, newest first, and what is wrong with those that cannot be read, one clause each."""
        found, problems = [], []
        for run_id in self._ids():
            try:
                found.append(self.run(run_id))
            except (ModelError, ProjectError) as error:
                problems.append(f"the run {run_id} is left out: {error}")
        return tuple(sorted(found, key=lambda r: (r.story.ended, r.id), reverse=True)), tuple(problems)

    def run(self, run_id: str) -> KeptRun:
        """One run.

        Raises
        ------
        ProjectError
            Where there is none with this id, or its file is a link.
        ModelError
            Where its model cannot be read.
        """
        from napari_sparseseg.learning.model_file import read_metadata

        model = self.file(run_id)
        if not model.exists():
            raise ProjectError(f"there is no run {run_id!r}.")
        metadata = read_metadata(model)
        found = model.stat()
        return KeptRun(run_id, model, found.st_size, self.story(run_id), metadata)

    def add(self, save: Callable[[Path], object], story: RunStory) -> str:
        """Write the model of a run by `save(path)`, then its story; returns the id."""
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        file = self.file(run_id)
        file.parent.mkdir(exist_ok=True)
        save(file)
        self.describe(run_id, story)
        return run_id

    def describe(self, run_id: str, story: RunStory) -> None:
        """Write what the model file does not say."""
        text = json.dumps({"format": _FORMAT, "version": _VERSION, **asdict(story)})
        write_atomic(self.file(run_id, STORY), lambda part: part.write_text(text, encoding="utf-8"))

    def delete(self, run_id: str) -> None:
        """Remove a run from disk."""
        for kind in (STORY, MODEL):
            self.file(run_id, kind).unlink(missing_ok=True)

    def prune(self, keep: Collection[str]) -> None:
        """Delete the oldest runs beyond the bounds, but never one with a name or in `keep`; and what a kill left."""
        for left in self.path.glob(".*.partial"):
            left.unlink(missing_ok=True)
        runs, _ = self.read()
        count, size = len(runs), sum(r.size for r in runs)
        for run in reversed(runs):
            if (count > MOST_RUNS or size > MOST_BYTES) and not run.story.name and run.id not in keep:
                self.delete(run.id)
                count, size = count - 1, size - run.size

    @property
    def in_use(self) -> str:
        """Id of the run whose model serves, or that it comes from; empty: none."""
        with suppress(OSError, ValueError, ProjectError):
            file = self._own(IN_USE)
            text = file.read_text(encoding="ascii").strip() if _is_small(file, 100) else ""
            return text if _ID.fullmatch(text) and self.file(text).exists() else ""
        return ""

    @in_use.setter
    def in_use(self, run_id: str) -> None:
        if self.path.is_dir() and run_id != self.in_use:
            write_atomic(self._own(IN_USE), lambda part: part.write_text(run_id, encoding="ascii"))

    def copy_to(self, other: RunFolder, made: list[Path]) -> None:
        """Bring the runs to another project; the files that are new there are added to `made`."""
        for run_id in self._ids():
            for kind in (MODEL, STORY):
                source, target = self.file(run_id, kind), other.file(run_id, kind)
                if source.is_file() and not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    link_or_copy(source, target)
                    made.append(target)

    def file(self, run_id: str, kind: str = MODEL) -> Path:
        """The model or the story of a run.

        Raises
        ------
        ProjectError
            Where that is no id of a run, or the file is a link.
        """
        if not _ID.fullmatch(run_id):
            raise ProjectError(f"there is no run {run_id!r:.100}.")
        return self._own(f"{run_id}{kind}")

    def _own(self, name: str) -> Path:
        for path in (self.path, self.path / name):
            if is_link(path):
                raise ProjectError(f"{path} is a link; a project holds its own files.")
        return self.path / name

    def _ids(self) -> list[str]:
        if is_link(self.path) or not self.path.is_dir():
            return []
        found = [p for p in self.path.iterdir() if p.suffix == MODEL and _ID.fullmatch(p.stem)]
        return [p.stem for p in found if p.is_file() and not is_link(p)]

    def story(self, run_id: str) -> RunStory:
        """What the model file does not say; where it is missing or damaged, only when the model was written."""
        file = self.file(run_id, STORY)
        try:
            text = file.read_text(encoding="utf-8") if _is_small(file, _MOST_JSON) else ""
            return _read_story(json.loads(text))
        except (OSError, ArithmeticError, ValueError, TypeError, RecursionError, LookupError, SparseSegError):
            model = self.file(run_id)
            return RunStory(ended=model.stat().st_mtime if model.exists() else 0.0)


def _is_small(file: Path, most: int) -> bool:
    """Whether this is an ordinary file, reading of which ends, of at most so many bytes."""
    return file.is_file() and file.stat().st_size <= most


def link_or_copy(source: Path, target: Path) -> None:
    """One file under two names where the disk can do that, else a copy; a file at `target` is replaced whole."""

    def place(part: Path) -> None:
        try:
            os.link(source, part)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, part)
        if not os.access(part, os.W_OK):  # of a folder that is read-only
            part.unlink()
            shutil.copyfile(source, part)

    write_atomic(target, place)


def _read_story(data: Any) -> RunStory:
    if data["format"] != _FORMAT:
        raise ValueError("no run")
    known = {f.name for f in fields(RunStory)}
    story = RunStory(**{k: v for k, v in data.items() if k in known and k not in ("losses", "scores")})
    if type(story.trained) is not bool or not isinstance(story.before, str) or not isinstance(story.name, str):
        raise ValueError("no run")
    if story.before and not _ID.fullmatch(story.before):
        raise ValueError("no run")
    datetime.fromtimestamp(_number(story.ended))  # OverflowError, OSError, ValueError: no time
    curves = [tuple((_number(x), _number(y)) for x, y in data[k][:MOST_POINTS]) for k in ("losses", "scores")]
    return RunStory(checked_name(story.name), story.ended, _number(story.seconds), story.trained, story.before, *curves)


def checked_name(name: str) -> str:
    """A name that a run can have.

    Raises
    ------
    ProjectError
        Where it has more than `MOST_NAME` characters or some that cannot be shown.
    """
    name = name.strip()
    if len(name) > MOST_NAME or not name.isprintable():
        raise ProjectError(f"the name {name[:40]!r} cannot be used: give at most {MOST_NAME} characters in one line.")
    return name


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no number")
    return float(value)
