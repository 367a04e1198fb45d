"""A project that is renamed, moved or removed while it is open, or whose disk goes away: strokes go on being kept."""

from __future__ import annotations

import logging
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.session import recovery
from napari_sparseseg.session.binding import bind_to, records_of
from napari_sparseseg.session.project import SUFFIX, Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.session.slides import SlideCollection

_log = logging.getLogger(__name__)


class Whereabouts:
    """Finds where a session can go on saving when its project is no longer where it was.

    A project that has another name in the same folder is followed. One that is nowhere there may be in the bin, or on
    a share that is away: strokes then go to a folder of unsaved work, until the project is back.

    Parameters
    ----------
    slides
        The open slides, whose annotations are bound to other files.
    say
        Called with one line for the user.
    """

    def __init__(self, slides: SlideCollection, say: Callable[[str], None]) -> None:
        self._slides, self._say = slides, say
        self._home: Project | None = None
        """The project that is away, while its strokes go to `_shelter`."""
        self._shelter: Project | None = None
        self._seen: tuple[Path | None, object] = None, None
        """Where a project was seen, and what its folder was."""
        self._stuck = False
        """Whether some annotations have no file now."""
        self._lock = threading.Lock()  # the engine thread may be the first that needs a shelter

    def is_settled(self, project: Project) -> bool:
        """Whether a project is where it was, and none is expected back. Any thread."""
        return self._home is None and self._is_same(project)

    def settle(self, project: Project) -> Project:
        """The project to save to from now on: the same, that under its new name, unsaved work, or the one that is back.

        Annotations are bound to it. Where none of these can be written, the project stays and nothing is changed.
        """
        home = self._home
        if home is not None and is_there(home):
            self._home = None
            return self._return(project, home)
        if self._is_same(project):
            return project
        found = self._renamed(project)
        if found is not None and self._move(project, found):
            self._say(f"the project was renamed to {found.path.name} while it was open; it goes on being saved there")
            return found
        if not self._stuck and (other := _identity(project)) is not None:
            self._seen = project.path, other  # a folder from a backup: its files are compared when they are written
            return project
        try:
            shelter = self._sheltered()
        except SparseSegError as error:
            _log.warning("%s is away, and unsaved work cannot be kept: %s", project.path, error)
            return project
        if not self._move(project, shelter):
            self._say(f"{project.path} is away, and strokes cannot be kept as unsaved work: save under another name")
            return project
        if not recovery.is_recovery(project):
            self._home = self._home or project
        self._say(
            f"{project.path} was moved or removed while it was open, or its disk is away. Strokes go on being saved, "
            f"as unsaved work in {shelter.path}: put the project back, or save it again, under its old or another name"
        )
        return shelter

    def is_at(self, path: Path) -> bool:
        """Whether the project that is away may be the one at `path`, by its files; `settle` then tries to return."""
        home = self._home
        if home is None or not (path / "project.json").exists():
            return False
        names = [r.annotations for r in records_of(home, self._slides.entries).values()]
        if not names or not all((path / "annotations" / name).exists() for name in names):
            return False
        self._home = Project(path.resolve(), home.state)
        return True

    def forget(self) -> None:
        """The session was saved somewhere else: nothing is to return any more."""
        self._home = self._shelter = None
        self._seen = None, None

    def of_model(self, project: Project) -> Project:
        """Where a model can be written now; the annotations follow with the next act. Any thread."""
        return project if is_there(project) else self._renamed(project) or self._sheltered()

    def see(self, project: Project) -> object:
        """Remember which folder a project is, unless that was seen; what it is now, or None. Any thread."""
        found = _identity(project)
        if found is not None and self._seen[0] != project.path:
            self._seen = project.path, found
        return found

    def _is_same(self, project: Project) -> bool:
        """Whether a project is the folder that was seen there first, and all annotations have a file in it."""
        found = self.see(project)
        return found is not None and found == self._seen[1] and not self._stuck

    def _sheltered(self) -> Project:
        with self._lock:
            if self._shelter is None or not is_there(self._shelter):
                self._shelter = recovery.new_recovery_project()
            return self._shelter

    def _renamed(self, project: Project) -> Project | None:
        """The project under another name in the same folder: it is the folder that was seen, with the files in use."""
        where, what = self._seen
        drawn = [e.annotations for e in self._slides.entries]
        for folder in sorted(project.path.parent.glob(f"*{SUFFIX}")) if where == project.path else ():
            found = Project(folder, project.state)
            if _identity(found) == what and all(
                a.is_bound_to(folder / "annotations" / a.path.name) for a in drawn if a.path is not None
            ):
                return found
        return None

    def _return(self, shelter: Project, home: Project) -> Project:
        if not self._move(shelter, home):
            self._say(
                f"{home.path} is there again, and another program has it open or has changed it: it stays as it is. "
                f"Strokes go on being saved in {shelter.path}; save under another name"
            )
            return shelter
        listed = {r.annotations for r in records_of(home, self._slides.entries).values()}
        self._shelter = None
        if recovery.strokes_in(shelter, except_for=listed) or shelter.checkpoint.exists():
            self._say(
                f"{home.path} is there again, and all that is open is saved in it; slides that were closed "
                f"meanwhile, and models, are unsaved work in {shelter.path}"
            )
        else:
            recovery.discard(shelter)
            self._say(f"{home.path} is there again, and everything is saved in it")
        return home

    def _move(self, old: Project, new: Project) -> bool:
        """Bind all annotations to files of another project, over earlier states of themselves only; or none."""
        entries = self._slides.entries
        records = records_of(old, entries)
        # not of a slide that is only being opened
        drawn = {e.key: e.annotations for e in entries if e.annotations.path is not None or e.annotations.version}
        files = [(annotations, records[key].annotations) for key, annotations in drawn.items()]
        try:
            for annotations, name in files:
                _take(annotations, new.path / "annotations" / name)
        except SparseSegError as error:
            _log.warning("cannot go on in %s: %s", new.path, error)
            self._stuck = old is new or not is_there(old) or not self._move(old, old)
            return False
        self._stuck = False
        return True


def is_there(project: Project) -> bool:
    """Whether a project is where it was."""
    return _identity(project) is not None


def _identity(project: Project) -> tuple[int, int] | None:
    """(device, inode) of the folder of annotations; None where there is none, or its share is away."""
    with suppress(OSError):
        found = (project.path / "annotations").stat()
        return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
    return None


def _take(annotations: Annotations, path: Path) -> None:
    if annotations.is_bound_to(path):
        if annotations.path == path and annotations.saved:
            return
        annotations.close()  # a file has one writer, also under its new name
    bind_to(annotations, path, overwrite=False)
