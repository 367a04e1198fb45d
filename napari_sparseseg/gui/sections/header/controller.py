"""The menu of the panel: projects, export as a script, log, help."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt, QUrl
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QTextBrowser, QWidget

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.sections.header.unsaved import UnsavedDialog, described
from napari_sparseseg.session.project import Project
from napari_sparseseg.session.recovery import delete_unsaved, recovery_folder, unsaved_work
from napari_sparseseg.session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.host import LogTrail
    from napari_sparseseg.gui.sections.header.view import Header
    from napari_sparseseg.gui.sections.train.view import TrainPanel
    from napari_sparseseg.session.persistence import Exists
    from napari_sparseseg.session.recovery import UnsavedWork


class ProjectActions(QObject):
    """Connects the menu of the header and the session."""

    def __init__(
        self,
        context: Context,
        header: Header,
        train: TrainPanel,
        log: LogTrail,
        predict_all: Callable[[], object],
        results: Callable[[], object],
    ) -> None:
        super().__init__(context)
        self._context, self._header, self._train, self._log = context, header, train, log
        header.add_action("Save project…", "Slides, annotations, settings and model in one folder", self._on_save)
        header.add_action("Open project…", "Continue with a saved project", self._on_open)
        header.add_action("Unsaved work…", "What was drawn and never saved as a project", self._on_unsaved)
        header.add_action(
            "Predict all slides…", "Predict every open slide into one folder, with one table", predict_all
        )
        header.add_action("Results…", "Objects and areas of a predicted slide, as tables and histograms", results)
        header.menu.addSeparator()
        header.add_action("Copy as Python", "A script that repeats this training", lambda: self._copy(as_python))
        header.add_action("Copy as command", "The same for a shell or a cluster", lambda: self._copy(as_command))
        header.menu.addSeparator()
        header.add_action("Save log…", "What the plugin did in this session, for a bug report", self._on_log)
        header.add_action("Help", "The documentation, in a window of its own", self._on_help)
        for signal in (context.annotated, context.slides_changed, context.session_replaced):
            signal.connect(self.show_saved)

    def save(self, path: str, exists: Exists = "refuse") -> None:
        """Save as a project, in the background."""
        session, saved = self._context.session, self._context.slides_changed.emit
        self._context.in_background(
            lambda: session.save(path, exists=exists), lambda _: saved(), name="Saving the project"
        )

    def save_again(self) -> None:
        """Save the project where it is; ask where, if it has no place of the user's yet."""
        session = self._context.session
        if session.project is None or session.project.parent == recovery_folder().resolve():
            self._on_save()
        else:
            self.save(str(session.project))

    def open(self, path: str) -> None:
        """Open a project in place of the current session."""
        self._context.in_background(
            lambda: Session.load(path, autosave=True), self._on_opened, name="Opening the project"
        )

    def _on_opened(self, session: Session) -> None:
        self._context.replace_session(session)
        if session.status.message:  # a slide that was not found, a model that cannot be used
            self._context.problem.emit(session.status.message, "")

    def show_saved(self) -> None:
        """Show whether the annotations are on disk, and where."""
        session = self._context.session
        if session.entry is None:
            self._header.show_saved("", "")
        elif session.project is None:
            self._header.show_saved("not saved", "Save a project from the menu to save your annotations")
        elif session.project.parent == recovery_folder().resolve():
            self._header.show_saved("✓ auto-saved", f"Every stroke is saved at once, in {session.project}. "
                                                    "Save a project to choose a name and a folder.")  # fmt: skip
        else:
            self._header.show_saved(f"✓ {session.project.stem}", f"Every stroke is saved at once, in {session.project}")

    def _on_save(self) -> None:
        entry = self._context.entry
        suggestion = "" if entry is None else str(Path(entry.slide.path).with_suffix(".sparseseg"))
        path = dialogs.ask_save(self._header, "Save project", suggestion, "Project folder (*.sparseseg)")
        if path:
            self.save_over(path)

    def save_over(self, path: str) -> None:
        """Save as a project; ask what becomes of one that is there."""
        own = self._context.session.project
        if not (Path(path) / "project.json").exists() or (own is not None and own == Path(path).resolve()):
            self.save(path)
            return
        question = (
            f"{path} is a project already.\n\nReplace: it is kept beside the new one, under another name.\n"
            "Merge: slides and strokes from here are added to it; roles and settings stay as they are there."
        )
        chosen = dialogs.ask_choice(self._header, "Save over a project?", question, "Replace", "Merge")
        if chosen:
            self.save(path, "replace" if chosen == "Replace" else "merge")

    def _on_unsaved(self) -> None:
        dialog = UnsavedDialog(self._header)
        dialog.open_requested.connect(lambda work: self.open(str(work.path)))
        dialog.open_requested.connect(dialog.close)
        dialog.delete_requested.connect(lambda work: self._on_delete(dialog, work))
        dialog.show()
        self._list_unsaved(dialog)

    def _list_unsaved(self, dialog: UnsavedDialog) -> None:
        self._context.jobs.run(unsaved_work, lambda works: _show_works(dialog, works))

    def _on_delete(self, dialog: UnsavedDialog, work: UnsavedWork) -> None:
        question = f"{described(work)}\n\nThis cannot be undone."
        if dialogs.ask_yes(dialog, "Delete unsaved work?", question, "Delete"):
            self._context.jobs.run(lambda: delete_unsaved(work), always=lambda: self._list_unsaved(dialog))

    def _on_open(self) -> None:
        path = dialogs.ask_folder(self._header, "Open project (a folder NAME.sparseseg)")
        if path:
            self.open(path)

    def _on_log(self) -> None:
        path, text = dialogs.ask_save(self._header, "Save log", "napari-sparseseg.log", "Log (*.log)"), self._log.text()
        if path:
            self._context.in_background(
                lambda: Path(path).write_text(text, encoding="utf-8"),
                lambda _: self._header.show_next_step(f"Saved {path}"),
                name="Saving the log",
            )

    def _copy(self, write: Callable[[Session, float | None], str]) -> None:
        session, clipboard = self._context.session, QGuiApplication.clipboard()
        if clipboard is None:
            return

        def copy() -> None:
            session.slide  # noqa: B018 - raises when no slide is open
            session.config = self._train.config(session.config)
            clipboard.setText(write(session, self._train.settings.seconds))

        if self._context.attempt(copy):
            self._header.show_next_step("Copied to the clipboard.")

    def _on_help(self) -> None:
        Documentation(self._header).show()


def _show_works(dialog: UnsavedDialog, works: tuple[UnsavedWork, ...]) -> None:
    with suppress(RuntimeError):  # closed meanwhile, and deleted by Qt
        dialog.show_works(works)


DEFAULT_SECONDS = 60
_SHELL = ("balancing", "mpp", "encoder", "device", "seed")


def as_python(session: Session, seconds: float | None) -> str:
    """A script that trains on the same slides and annotations with the same settings, and predicts the active slide."""
    changed = _changed(session.config)
    settings = "".join(f", {name}={value!r}" for name, value in changed.items())
    lines = ["from napari_sparseseg import Session", "", "with Session(()) as session:"]
    for slide, drawn in _files(session):
        lines.append(f"    session.open({str(slide)!r})")
        if drawn is not None:
            lines.append(f"    session.import_annotations({str(drawn)!r})")
    lines += [
        f"    session.train({session.config.balancing!r}, seconds={seconds or DEFAULT_SECONDS:g}{settings}, wait=True)",
        '    session.save_model("model.safetensors", overwrite=True)',
        '    session.predict_slide("prediction.ome.zarr", overwrite=True)',
    ]
    return "\n".join(lines) + "\n"


def as_command(session: Session, seconds: float | None) -> str:
    """Shell commands that do the same; settings without an option there keep their defaults."""
    files = _files(session)
    train = ["napari-sparseseg", "train", *(str(slide) for slide, _ in files)]
    given = [str(a) for _, a in files if a is not None]
    if len(given) == len(files):
        train += ["--annotations", *given]
    train += ["--model", "model.safetensors", "--overwrite", "--seconds", f"{seconds or DEFAULT_SECONDS:g}"]
    config = {"balancing": session.config.balancing, **_changed(session.config)}
    for name, value in config.items():
        if name in _SHELL:
            train += [f"--{name}", str(value)]
    active = str(session.slide.path)
    predict = ["napari-sparseseg", "predict", active, "--model", "model.safetensors"]
    predict += ["--output", "prediction.ome.zarr", "--overwrite"]
    return shlex.join(train) + "\n" + shlex.join(predict) + "\n"


def _changed(config: TrainConfig) -> dict[str, Any]:
    """Settings that differ from the defaults, without balancing."""
    plain = TrainConfig()
    names = [f.name for f in fields(TrainConfig) if f.name != "balancing"]
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(plain, n)}


def _files(session: Session) -> list[tuple[str, Path | None]]:
    """The file of every training slide, and the file of its annotations."""
    project = None if session.project is None else Project.open(session.project)
    found: list[tuple[str, Path | None]] = []
    for entry in session.entries:
        if entry.role == "train":
            path = str(entry.slide.path)
            record = None if project is None else project.record_for(path, entry.slide.fingerprint, entry.role)
            drawn = None if project is None or record is None else project.annotations_path(record)
            found.append((path, drawn))
    return found


WIDTH, HEIGHT = 720, 760
FIRST_PAGE = "tour.md"
_PICTURE = re.compile(r"^!\[(?P<what>[^\]]*)\]\([^)]*\)$", re.MULTILINE)


def documentation(page: Path) -> str:
    """A page of the documentation as Markdown, with pictures replaced by their captions."""
    if not page.exists():
        return f"# {page.stem}\n\nThis page is in the documentation on the web and in the repository, folder `docs`."
    return _PICTURE.sub(r"*\g<what>*", page.read_text(encoding="utf-8"))


def documentation_folder() -> Path:
    """The folder of the pages: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[3]
    return next(f for f in (package / "docs", package.parent / "docs") if (f / FIRST_PAGE).exists())


class Documentation(QTextBrowser):
    """The documentation for users in a window of its own; it needs no network."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowFlag(Qt.WindowType.Window)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("napari-sparseseg: documentation")
        self.setOpenExternalLinks(True)
        self.setSource(QUrl.fromLocalFile(str(documentation_folder() / FIRST_PAGE)))
        self.resize(WIDTH, HEIGHT)

    def loadResource(self, kind: int, url: QUrl) -> Any:
        """Load the page that a link leads to."""
        page = Path(url.toLocalFile())
        return documentation(page) if page.suffix == ".md" else super().loadResource(kind, url)
