"""A project on disk: a folder ``NAME.sparseseg`` that can be moved, and opened after any crash.

``project.json`` holds slides (path and fingerprint), classes and settings; ``annotations/`` one SQLite file per slide;
``models/`` safetensors; ``predictions/`` results. Nothing in it is executed, and no name in it can point outside.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, TrainConfig, make_classes
from napari_sparseseg.errors import ProjectError, SparseSegError
from napari_sparseseg.files import is_link, write_atomic

if TYPE_CHECKING:
    from collections.abc import Collection

SCHEMA = 1
SUFFIX = ".sparseseg"
Role = Literal["train", "held-out", "predict"]
_MAX_JSON = 16 << 20
_MAX_TEXT = 4096
_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """One slide of a project: where it was, what it is, what it is for."""

    path: str
    """Absolute path when it was last seen."""
    fingerprint: str
    annotations: str
    """Name of its annotation file inside ``annotations/``."""
    role: Role = "train"
    relative: str = ""
    """Path relative to the project folder, tried first, so that project and slides can move together."""
    mpp: tuple[float, float] | None = None
    """What the user said; None: what the slide says."""


@dataclass(frozen=True, slots=True)
class ProjectState:
    """All that ``project.json`` holds."""

    slides: tuple[SlideRecord, ...] = ()
    classes: tuple[ClassDef, ...] = DEFAULT_CLASSES
    config: TrainConfig = field(default_factory=TrainConfig)


class Project:
    """A project folder; `state` is what was last read from disk or written to it."""

    def __init__(self, path: Path, state: ProjectState) -> None:
        self.path, self.state = path, state

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Project:
        """Make a new project folder.

        Raises
        ------
        ProjectError
            When the folder exists and is not empty, or cannot be made.
        """
        folder = Path(path)
        if folder.suffix != SUFFIX:
            folder = folder.with_name(folder.name + SUFFIX)
        try:
            if folder.exists() and not _is_free(folder):
                raise ProjectError(f"{folder} exists already; open it, or choose another name.")
            for name in ("annotations", "models", "predictions"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            project = cls(folder.resolve(), ProjectState())
            project.write(project.state)
        except OSError as error:
            raise ProjectError(
                f"cannot make project {folder}: {error.strerror or error}. Choose a writable folder."
            ) from error
        return project

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Project:
        """Open an existing project folder.

        Raises
        ------
        ProjectError
            When it is no project, was written by a newer version, or is damaged.
        """
        folder = Path(path)
        file = folder / "project.json"
        if is_link(file):
            raise ProjectError(f"{file} is a link; a project holds its own files.")
        try:
            state = _read_state(file)
        except FileNotFoundError as error:
            raise ProjectError(f"{folder} is not a project: it has no project.json.") from error
        except OSError as error:
            raise ProjectError(f"cannot read {file}: {error.strerror or error}.") from error
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise ProjectError(
                f"{file} is damaged ({type(error).__name__}: {error}). The annotations beside it are whole: open them "
                "one by one from the annotations folder."
            ) from error
        return cls(folder.resolve(), state)

    def listed_by_others(self) -> tuple[SlideRecord, ...]:
        """Slides that another program has put into ``project.json`` since it was read or written here."""
        try:
            found = _read_state(self.path / "project.json")
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, ProjectError):
            return ()  # away or damaged: it is replaced by what is known here
        known = {r.annotations for r in self.state.slides}
        return tuple(r for r in found.slides if r.annotations not in known)

    def write(self, state: ProjectState) -> None:
        """Replace ``project.json`` atomically."""
        data = {"schema": SCHEMA, **asdict(state)}
        text = json.dumps(data, indent=1)
        try:
            write_atomic(self.path / "project.json", lambda temporary: _write_text(temporary, text))
        except OSError as error:
            raise ProjectError(f"cannot save project {self.path}: {error.strerror or error}.") from error
        self.state = state

    @property
    def checkpoint(self) -> Path:
        """The model that training last wrote.

        Raises
        ------
        ProjectError
            When it would be outside the project folder, by a link.
        """
        return self._own("models", "model.safetensors")

    def annotations_path(self, record: SlideRecord) -> Path:
        """The annotation file of a slide.

        Raises
        ------
        ProjectError
            When the recorded name would leave the project folder, by ``..``, an absolute path or a link.
        """
        # Also what is a separator elsewhere only: projects travel.
        if re.search(r"[/\\:]", record.annotations) or record.annotations in ("", ".", ".."):
            raise ProjectError(f"annotation file name {record.annotations!r} is not a plain name; refused.")
        return self._own("annotations", record.annotations)

    def _own(self, folder: str, name: str) -> Path:
        """A file in one of the project's folders: what is written there must stay there."""
        target = self.path / folder / name
        for path in (target.parent, target):
            if is_link(path):
                raise ProjectError(f"{path} is a link; a project holds its own files.")
        return target

    def record_for(
        self, path: str, fingerprint: str, role: Role = "train", others: Collection[SlideRecord] = ()
    ) -> SlideRecord:
        """The record of a slide: the known one with the same fingerprint, brought up to date, or a new one.

        Parameters
        ----------
        path
            Of the file, or an address (``https://...``), which is kept as it is.
        others
            Records of other slides that are open: a copy of one of them gets an annotation file of its own.
        """
        absolute = path if is_remote(path) else str(Path(path).resolve())
        taken = {r.annotations for r in others}
        same = [r for r in self.state.slides if r.fingerprint == fingerprint and r.annotations not in taken]
        if same:
            known = next((r for r in same if r.path == absolute), same[0])
            return replace(known, path=absolute, relative=_relative(absolute, self.path))
        stem = _SAFE_NAME.sub("_", Path(path).name.split(".")[0])[:60] or "slide"
        base = f"{stem}-{_SAFE_NAME.sub('', fingerprint)[-12:]}"
        names = (f"{base}.sqlite", *(f"{base}-{k}.sqlite" for k in range(2, len(taken) + 2)))
        name = next(n for n in names if n not in taken)
        return SlideRecord(absolute, fingerprint, name, role, _relative(absolute, self.path))

    def locate(self, record: SlideRecord) -> Path | None:
        """Where a slide is now: beside the project as before, at its old place, or next to the project by name."""
        name = Path(record.path).name
        candidates = [Path(record.path), self.path.parent / name]
        if record.relative:
            candidates.insert(0, self.path / record.relative)
        return next((c.resolve() for c in candidates if _exists(c)), None)


def _read_state(file: Path) -> ProjectState:
    if file.stat().st_size > _MAX_JSON:
        raise ProjectError(f"{file} has {file.stat().st_size} bytes; a project file has a few thousand.")
    return _state_from_json(json.loads(file.read_text(encoding="utf-8")))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or all that is left of a project whose making was cut short."""
    if not folder.is_dir():
        return False
    left = ("annotations", "models", "predictions")
    return all(
        (p.name in left and p.is_dir() and not p.is_symlink() and not any(p.iterdir())) or p.suffix == ".partial"
        for p in folder.iterdir()
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a share that is gone
        return False


def is_remote(path: str) -> bool:
    """Whether a recorded path is an address, which nothing but the user's own wish may ask for."""
    return "://" in path


def _relative(absolute: str, folder: Path) -> str:
    if is_remote(absolute):
        return ""
    try:
        return os.path.relpath(absolute, folder)
    except ValueError:  # another drive on Windows
        return ""


def _state_from_json(data: dict[str, Any]) -> ProjectState:
    schema = data["schema"]
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ProjectError(f"the project was written by a newer version (schema {schema}); update napari-sparseseg.")
    names = {f.name for f in fields(SlideRecord)}
    slides = []
    for item in data["slides"]:
        values = {k: v for k, v in item.items() if k in names}
        if values.get("mpp") is not None:
            values["mpp"] = (float(values["mpp"][0]), float(values["mpp"][1]))
            if not all(0 < v < float("inf") for v in values["mpp"]):
                raise ValueError(f"mpp {values['mpp']}")
        record = SlideRecord(**values)
        if record.role not in get_args(Role):
            raise ValueError(f"role {record.role!r}")
        if not all(isinstance(v, str) for v in (record.path, record.fingerprint, record.annotations, record.relative)):
            raise ValueError("a slide's path, fingerprint and annotation file must be text")
        if any(len(v) > _MAX_TEXT or "\0" in v for v in (record.path, record.annotations, record.relative)):
            raise ValueError("a path is no path")
        slides.append(record)
    config_names = {f.name for f in fields(TrainConfig)}
    try:
        classes = make_classes(ClassDef(**c) for c in data["classes"])
        config = TrainConfig(**{k: v for k, v in data["config"].items() if k in config_names})
    except SparseSegError as error:
        raise ValueError(str(error)) from error
    return ProjectState(tuple(slides), classes, config)
