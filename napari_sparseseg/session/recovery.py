"""Unsaved work: every session that was not saved as a project has a folder here until its user deletes it."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from napari_sparseseg.annotations import FileInUseError
from napari_sparseseg.annotations.file_state import summary
from napari_sparseseg.annotations.sqlite_file import require_unlocked
from napari_sparseseg.errors import AnnotationError, ProjectError
from napari_sparseseg.files import state_folder
from napari_sparseseg.session.project import SUFFIX, Project, ProjectState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_count = itertools.count(1)
_TIME = "%Y%m%d-%H%M%S"
KEPT_DAYS = 30
"""Younger work is never deleted."""


@dataclass(frozen=True, slots=True)
class UnsavedWork:
    """A recovery folder.

    Attributes
    ----------
    when
        Of its last change.
    slides
        Names of the slides that were drawn on.
    strokes
        On all of them; 0 where there is only a model.
    size
        Of all its files, bytes.
    in_use
        Whether a session that is running now writes to it.
    """

    path: Path
    when: datetime
    slides: tuple[str, ...]
    strokes: int
    size: int
    in_use: bool


def recovery_folder() -> Path:
    """Where the folders of unsaved sessions are."""
    return state_folder() / "recovery"


def new_recovery_project() -> Project:
    """A project folder for a session that has none yet."""
    folder = recovery_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_stamp(folder)}-{os.getpid()}-{next(_count)}{SUFFIX}"
    except OSError as error:
        raise ProjectError(
            f"cannot save unsaved work in {folder}: {error.strerror or error}. Set NAPARI_SPARSESEG_HOME to a folder "
            "that can be written to."
        ) from error
    return Project.create(folder / name)


def unsaved_work() -> tuple[UnsavedWork, ...]:
    """All recovery folders with strokes or a model, newest first."""
    found = []
    for project in _projects():
        files = [path for path in project.path.rglob("*") if path.is_file() and not path.is_symlink()]
        drawn = {file: strokes for file in _annotation_files(project) if (strokes := _strokes(file))}
        listed = (*project.state.slides, *project.state.closed)
        slides = {Path(r.path).name for r in listed if project.path / "annotations" / r.annotations in drawn}
        if drawn or any(path.suffix == ".safetensors" for path in files):
            when = datetime.fromtimestamp(max(path.stat().st_mtime for path in files))
            size = sum(path.stat().st_size for path in files)
            found.append(
                UnsavedWork(project.path, when, tuple(sorted(slides)), sum(drawn.values()), size, in_use(project))
            )
    return tuple(found)


def delete_unsaved(work: UnsavedWork) -> None:
    """Delete a recovery folder that the user has chosen.

    Raises
    ------
    ProjectError
        When it is younger than `KEPT_DAYS`, or a session uses it.
    """
    project = Project.open(work.path)
    if in_use(project):
        raise ProjectError(f"{work.path} belongs to a session that is running.")
    if datetime.now() - work.when < timedelta(days=KEPT_DAYS):
        raise ProjectError(f"{work.path} was changed less than {KEPT_DAYS} days ago.")
    discard(project)


def in_use(project: Project) -> bool:
    """Whether a running session writes to a project: it holds a lock on every annotation file."""
    for file in _annotation_files(project):
        try:
            require_unlocked(file)
        except FileInUseError:
            return True
    return False


def strokes_in(project: Project, *, except_for: Collection[str] = ()) -> int:
    """Strokes in the annotation files of a project, without those of some names; a damaged file counts as one."""
    return sum(_strokes(file) for file in _annotation_files(project) if file.name not in except_for)


def is_all_listed(project: Project) -> bool:
    """Whether a project has no strokes but those of the slides that it lists."""
    listed = {r.annotations for r in (*project.state.slides, *project.state.closed)}
    return not project.state.unreadable and not strokes_in(project, except_for=listed)


def recoverable(fingerprint: str, *, running: bool = True) -> list[Path]:
    """Folders of sessions, newest first, that hold strokes on the slide with this fingerprint.

    Without `running`, those that a session writes to now, in another window too, are left out: nothing is lost there.
    """
    found = []
    for project in _projects():
        records = [r for r in (*project.state.slides, *project.state.closed) if r.fingerprint == fingerprint]
        if any(_strokes(project.annotations_path(r)) for r in records) and (running or not in_use(project)):
            found.append(project.path)
    return found


def recovered(folder: Path, fingerprint: str) -> Path:
    """The annotation file of an earlier session on the slide with this fingerprint, in one of `recoverable`."""
    project = Project.open(folder)
    records = [r for r in (*project.state.slides, *project.state.closed) if r.fingerprint == fingerprint]
    if not records:
        raise ProjectError(f"{folder} holds no strokes on this slide.")
    return max(map(project.annotations_path, records), key=_strokes)


def discard(project: Project) -> None:
    """Remove a recovery folder; a project that the user saved is never touched."""
    if is_recovery(project):
        shutil.rmtree(project.path, ignore_errors=True)


def is_recovery(project: Project) -> bool:
    """Whether a project is a recovery folder, not one that the user saved."""
    try:
        return project.path.parent == recovery_folder().resolve()
    except ProjectError:
        return False


def _annotation_files(project: Project) -> list[Path]:
    return [file for file in (project.path / "annotations").glob("*.sqlite") if not file.is_symlink()]


def _strokes(file: Path) -> int:
    try:
        return summary(file).strokes
    except AnnotationError:
        return 1


def _projects() -> Iterator[Project]:
    for path in _newest_first(recovery_folder()):
        try:
            yield Project.open(path)
        except ProjectError:  # being created, damaged, or of a newer version: its strokes are listed all the same
            yield Project(path, ProjectState())


def _stamp(folder: Path) -> str:
    """The time, later than that of every folder there is: a clock that was set back must not change their order."""
    now = time.strftime(_TIME)
    try:
        last = time.mktime(time.strptime(_newest_first(folder)[0].name[: len(now)], _TIME))
    except (IndexError, ValueError, OverflowError):
        return now
    return max(now, time.strftime(_TIME, time.localtime(last + 1)))


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.name, reverse=True) if folder.is_dir() else []
