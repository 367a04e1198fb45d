"""Projects, scripts of what was done, help: the menu of the panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject
from qtpy.QtGui import QGuiApplication

from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.help import show_documentation
from napari_sparseseg.gui.script_export import as_command, as_python
from napari_sparseseg.session.recovery import recovery_folder
from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.header import Header
    from napari_sparseseg.gui.sections.train.view import TrainPanel


class ProjectActions(QObject):
    """Joins the menu of the header and the session."""

    def __init__(self, context: Context, header: Header, train: TrainPanel, predict_all: Callable[[], object]) -> None:
        super().__init__(context)
        self._context, self._header, self._train = context, header, train
        header.add_action("Save project…", "Slides, scribbles, settings and model in one folder", self._on_save)
        header.add_action("Open project…", "Go on where a project was left", self._on_open)
        header.add_action("Predict all slides…", "Every open slide into one folder, with one table", predict_all)
        header.menu.addSeparator()
        header.add_action("Copy as Python", "A script that does what was done here", lambda: self._copy(as_python))
        header.add_action("Copy as command", "The same for a shell or a cluster", lambda: self._copy(as_command))
        header.menu.addSeparator()
        header.add_action("Help", "The documentation, in a window beside napari", self._on_help)
        context.annotated.connect(self.show_saved)
        context.slides_changed.connect(self.show_saved)
        context.session_replaced.connect(self.show_saved)

    def save(self, path: str) -> None:
        """Save as a project, in the background."""
        session, saved = self._context.session, self._context.slides_changed.emit
        self._context.in_background(lambda: session.save(path), lambda _: saved(), name="Saving the project")

    def open(self, path: str) -> None:
        """Open a project in place of the present session."""
        self._context.in_background(
            lambda: Session.load(path, autosave=True), self._context.replace_session, name="Opening the project"
        )

    def show_saved(self) -> None:
        """Say whether what was drawn is on disk, and where."""
        session = self._context.session
        if not session.set.has_active:
            self._header.show_saved("", "")
        elif session.project is None:
            self._header.show_saved("not saved", "Save a project from the menu to keep what you draw")
        elif session.project.parent == recovery_folder().resolve():
            self._header.show_saved("✓ kept", f"Every stroke is on disk at once, in {session.project}. "
                                              "Save a project to give it a name and a place.")  # fmt: skip
        else:
            self._header.show_saved(
                f"✓ {session.project.stem}", f"Every stroke is on disk at once, in {session.project}"
            )

    def _on_save(self) -> None:
        entry = self._context.entry
        suggestion = "" if entry is None else str(Path(entry.slide.path).with_suffix(".sparseseg"))
        path = dialogs.ask_save(self._header, "Save project", suggestion, "Project folder (*.sparseseg)")
        if path:
            self.save(path)

    def _on_open(self) -> None:
        path = dialogs.ask_folder(self._header, "Open project (a folder NAME.sparseseg)")
        if path:
            self.open(path)

    def _copy(self, write: Callable[[Session, float | None], str]) -> None:
        session, clipboard = self._context.session, QGuiApplication.clipboard()
        if clipboard is None:
            return

        def copy() -> None:
            session.set.active  # noqa: B018 - raises what to do where no slide is open
            session.config = self._train.config(session.config)
            clipboard.setText(write(session, self._train.settings.seconds))

        if self._context.attempt(copy):
            self._header.show_next_step("Copied to the clipboard.")

    def _on_help(self) -> None:
        show_documentation(self._header)
