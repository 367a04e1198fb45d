"""Recent slides and projects: remembered across sessions, opened from the menu of the Slide section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from napari_sparseseg.files import state_folder, write_atomic
from napari_sparseseg.samples import sample_slide
from napari_sparseseg.session.recovery import recovery_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.sections.slide.view import SlidePanel

KEPT = 10


def recent_slides() -> list[Path]:
    """Newest first; those that are gone are left out."""
    try:
        listed = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    paths = [Path(p) for p in listed if isinstance(p, str)] if isinstance(listed, list) else []
    return [p for p in paths if p.exists()]


def remember(paths: list[Path]) -> None:
    """Put slides at the head of the list; where it cannot be written it stays as it was."""
    kept = [*paths, *(p for p in recent_slides() if p not in paths)][:KEPT]
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(), lambda path: _write(path, kept))
    except OSError:
        return


def _write(path: Path, kept: list[Path]) -> None:
    path.write_text(json.dumps([str(p) for p in kept]), encoding="utf-8")


def _file() -> Path:
    return state_folder() / "recent.json"


class RecentActions(QObject):
    """Keeps the list and fills the menu."""

    def __init__(
        self, context: Context, panel: SlidePanel, slides: SlideActions, open_project: Callable[[str], object]
    ) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._open_project = context, panel, slides, open_project
        self._seen: set[Path] = set()
        context.slides_changed.connect(self._on_slides)
        panel.recent_chosen.connect(self._on_chosen)
        self._list(None)

    def _on_chosen(self, path: str) -> None:
        (self._open_project if (Path(path) / "project.json").exists() else self._slides.open)(path)

    def _on_slides(self) -> None:
        session = self._context.session
        paths = [Path(e.slide.path) for e in session.set.entries]
        new = [p.absolute() for p in paths if p.exists() and p != sample_slide()]
        if session.project is not None and session.project.parent != recovery_folder().resolve():
            new.insert(0, session.project.absolute())
        new = [p for p in new if p not in self._seen]
        if new:
            self._seen |= set(new)
            self._context.jobs.run(lambda: remember(new), self._list)

    def _list(self, _: None) -> None:
        self._panel.show_recent([str(p) for p in recent_slides()])
