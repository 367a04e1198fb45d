"""Unsaved work: every session that was not saved as a project has a folder here until its user lets it go."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from typing import TYPE_CHECKING

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.errors import ProjectError
from napari_sparseseg.files import state_folder
from napari_sparseseg.session.project import SUFFIX, Project

if TYPE_CHECKING:
    from pathlib import Path

_count = itertools.count(1)
_TIME = "%Y%m%d-%H%M%S"
KEPT = 50
"""Recovery folders kept; the oldest beyond go when a new one is made."""


def recovery_folder() -> Path:
    """Where the folders of unsaved sessions are."""
    return state_folder() / "recovery"


def new_recovery_project() -> Project:
    """A project folder for a session that has none yet."""
    folder = recovery_folder()
    name = f"{_stamp(folder)}-{os.getpid()}-{next(_count)}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectError(f"cannot keep unsaved work in {folder}: {error.strerror or error}.") from error
    for old in _newest_first(folder)[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return Project.create(folder / name)


def recoverable(fingerprint: str) -> list[Path]:
    """Folders of earlier unsaved sessions, newest first, that hold annotations of the slide with this fingerprint."""
    found = []
    for path in _newest_first(recovery_folder()):
        try:
            project = Project.open(path)
        except ProjectError:
            continue  # another session is just making it, or it is damaged: nothing to offer either way
        records = [r for r in project.state.slides if r.fingerprint == fingerprint]
        if any(project.annotations_path(r).exists() for r in records):
            found.append(path)
    return found


def recovered(folder: Path, fingerprint: str) -> Annotations:
    """What an earlier session drew on the slide with this fingerprint; one of the folders `recoverable` names."""
    project = Project.open(folder)
    record = next(r for r in project.state.slides if r.fingerprint == fingerprint)
    return Annotations.load(project.annotations_path(record))


def discard(project: Project) -> None:
    """Remove a recovery folder; a project that the user saved is never touched."""
    if project.path.parent == recovery_folder().resolve():
        shutil.rmtree(project.path, ignore_errors=True)


def _stamp(folder: Path) -> str:
    """The time, later than that of every folder there is: a clock set back must not make the newest the oldest."""
    now = time.strftime(_TIME)
    try:
        last = time.mktime(time.strptime(_newest_first(folder)[0].name[: len(now)], _TIME))
    except (IndexError, ValueError, OverflowError):
        return now
    return max(now, time.strftime(_TIME, time.localtime(last + 1)))


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.name, reverse=True) if folder.is_dir() else []
