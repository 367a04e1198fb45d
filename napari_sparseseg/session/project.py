"""A project on disk: a folder ``NAME.sparseseg`` that can be moved, and opened after any crash.

``project.json`` lists slides (path and fingerprint), classes and settings; ``annotations/`` has one SQLite file per
slide; ``models/`` safetensors; ``predictions/`` results. Nothing in it is executed, and no name in it points outside.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from napari_sparseseg.config import DEFAULT_CLASSES, ClassDef, TrainConfig, make_classes
from napari_sparseseg.errors import ProjectError, SparseSegError
from napari_sparseseg.files import is_link, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

SCHEMA = 1
SUFFIX = ".sparseseg"
Role = Literal["train", "held-out", "predict"]
_MAX_JSON = 16 << 20
_MAX_TEXT = 4096
_MPP = 1e-4, 1e5
_T = TypeVar("_T")
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
    """Set by the user; None: as the slide says."""
    strokes: int = 0
    """How many its annotation file had when this was written, to notice an older or incomplete copy."""
    version: int = 0
    """Of its annotations when this was written; it only grows."""
    image: int | None = None
    """Number of the image in a file that contains several; None: the largest."""
    crop: bool = False
    """Whether the slide is cropped to its scanned area; projects written before that was done have the whole canvas."""
    classes: tuple[ClassDef, ...] = ()
    """Of a slide that is not open: what the ids in its annotation file mean, under the names that the classes have now.
    Empty: what the project's class table says."""


@dataclass(frozen=True, slots=True)
class ProjectState:
    """The contents of ``project.json``."""

    slides: tuple[SlideRecord, ...] = ()
    classes: tuple[ClassDef, ...] = DEFAULT_CLASSES
    config: TrainConfig = field(default_factory=TrainConfig)
    closed: tuple[SlideRecord, ...] = ()
    """Slides that were taken off the project; opening one restores its strokes, role and mpp."""
    unreadable: tuple[Any, ...] = ()
    """Entries of slides that this version cannot read, written back as they are."""
    unreadable_closed: tuple[Any, ...] = ()
    """The same of `closed`."""
    next_classes: tuple[ClassDef, ...] = ()
    """While the annotation files get another class table: that table; empty otherwise."""


class Project:
    """A project folder.

    Attributes
    ----------
    state
        What was last read from disk or written to it.
    problems
        What could not be read, one clause each.
    """

    def __init__(self, path: Path, state: ProjectState, problems: Sequence[str] = ()) -> None:
        self.path, self.state, self.problems = path, state, tuple(problems)

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
            state, problems = _read_state(file)
        except FileNotFoundError as error:
            raise ProjectError(f"{folder} is not a project: it has no project.json.") from error
        except OSError as error:
            raise ProjectError(f"cannot read {file}: {error.strerror or error}.") from error
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise ProjectError(
                f"{file} is damaged ({type(error).__name__}: {str(error)[:200]}). The annotations beside it are not "
                "affected: open them one by one from the annotations folder."
            ) from error
        listed = {record.annotations for record in state.closed}
        unlisted = sorted(f.name for f in (folder / "annotations").glob("*.sqlite") if f.name not in listed)
        if unlisted and not state.slides:
            names = ", ".join(unlisted[:3]) + (" ..." if len(unlisted) > 3 else "")
            problems.append(
                f"project.json lists no slide, but {len(unlisted)} annotation files are there ({names}); "
                "open a slide and import them from the annotations folder"
            )
        return cls(folder.resolve(), state, problems)

    def listed_by_others(self) -> ProjectState:
        """What another program has put into ``project.json`` since it was read or written here."""
        try:
            found, _ = _read_state(self.path / "project.json")
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, ProjectError):
            return ProjectState()  # missing or damaged: it is replaced by what is known here
        mine = self.state
        known = {r.annotations for r in (*mine.slides, *mine.closed)}
        slides, closed = (
            tuple(replace(r, classes=r.classes or found.classes) for r in records if r.annotations not in known)
            for records in (found.slides, found.closed)
        )
        others = (
            tuple(item for item in theirs if item not in ours)
            for theirs, ours in (
                (found.unreadable, mine.unreadable),
                (found.unreadable_closed, mine.unreadable_closed),
            )
        )
        return ProjectState(slides, (), mine.config, closed, *others)

    def write(self, state: ProjectState) -> None:
        """Replace ``project.json`` atomically."""
        data = {"schema": SCHEMA, **asdict(state)}
        for listed, unreadable in (("slides", "unreadable"), ("closed", "unreadable_closed")):
            data[listed] = [*data[listed], *data.pop(unreadable)]
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
        # separators of every system: projects are moved between them
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
        absolute = full_path(path)
        taken = {r.annotations for r in others}
        listed = (*self.state.slides, *self.state.closed)
        same = [r for r in listed if r.fingerprint == fingerprint and r.annotations not in taken]
        if same:
            known = next((r for r in same if r.path == absolute), same[0])
            return replace(known, path=absolute, relative=_relative(absolute, self.path))
        stem = _SAFE_NAME.sub("_", Path(path).name.split(".")[0])[:60] or "slide"
        base = f"{stem}-{_SAFE_NAME.sub('', fingerprint)[-12:]}"
        names = (f"{base}.sqlite", *(f"{base}-{k}.sqlite" for k in range(2, len(taken) + 2)))
        folded = {n.casefold() for n in taken}  # on some disks they would be one file
        name = next(n for n in names if n.casefold() not in folded)
        return SlideRecord(absolute, fingerprint, name, role, _relative(absolute, self.path))

    def locate(self, record: SlideRecord) -> Path | None:
        """Where a slide is now: at its place relative to the project, at its old path, or next to the project."""
        name = Path(record.path).name
        candidates = [Path(record.path), self.path.parent / name]
        if record.relative:
            candidates.insert(0, self.path / record.relative)
        return next((c.resolve() for c in candidates if _exists(c)), None)


def full_path(path: str) -> str:
    """The path of a slide as a record has it; an address stays as it is."""
    return path if is_remote(path) else str(Path(path).resolve())


def free_name(name: str, taken: Collection[str]) -> str:
    """The name of an annotation file, with a number where it is taken."""
    stem, folded = _SAFE_NAME.sub("_", Path(name).stem)[:150] or "slide", {n.casefold() for n in taken}
    names = (f"{stem}{tail}.sqlite" for tail in ("", *(f"-{k}" for k in range(2, 9999))))
    return next(n for n in names if n.casefold() not in folded)


def moved_record(record: SlideRecord, home: Path | None, folder: Path, taken: Collection[str]) -> SlideRecord:
    """A record as it is in the project at `folder`, when it comes from the one at `home`."""
    relative = record.relative
    if home is not None and relative:
        relative = _relative(os.path.normpath(home / relative), folder)
    return replace(record, relative=relative, annotations=free_name(record.annotations, taken))


def _read_state(file: Path) -> tuple[ProjectState, list[str]]:
    if file.stat().st_size > _MAX_JSON:
        raise ProjectError(f"{file} has {file.stat().st_size} bytes; a project file has a few thousand.")
    return _state_from_json(json.loads(file.read_text(encoding="utf-8")))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or the remains of a project whose creation was interrupted."""
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
    """Whether a recorded path is an address, which is only opened when the user asks for it."""
    return "://" in path


def _relative(absolute: str, folder: Path) -> str:
    if is_remote(absolute):
        return ""
    try:
        return os.path.relpath(absolute, folder)
    except ValueError:  # another drive on Windows
        return ""


def _state_from_json(data: dict[str, Any]) -> tuple[ProjectState, list[str]]:
    """The state, and what of it cannot be read: one bad value costs its own slide or setting only."""
    schema = data["schema"]
    if not isinstance(schema, int) or schema > SCHEMA:
        version = f"schema {schema!r:.60}"
        raise ProjectError(f"the project was written by a newer version ({version}); update napari-sparseseg.")
    problems: list[str] = []
    slides, unreadable = _records(data["slides"], problems, "slide {} of project.json is left out")
    closed, unreadable_closed = _records(
        data.get("closed", []), problems, "closed slide {} of project.json is left out"
    )
    classes = _attempt(
        lambda: make_classes(ClassDef(**c) for c in data["classes"]),
        problems,
        "the class table of project.json was replaced by those of the annotations",
    )
    upcoming = _attempt(
        lambda: make_classes(ClassDef(**c) for c in data.get("next_classes", ())),
        problems,
        "an interrupted change of the classes is left out",
    )
    config = TrainConfig()
    for name, value in data["config"].items():
        if name in {f.name for f in fields(TrainConfig)}:
            changed = _attempt(
                lambda name=name, value=value, config=config: config.updated({name: value}),
                problems,
                f"the setting {name} has its default",
            )
            config = changed or config
    state = ProjectState(slides, classes or (), config, closed, unreadable, unreadable_closed, upcoming or ())
    return state, problems


def _records(items: Any, problems: list[str], consequence: str) -> tuple[tuple[SlideRecord, ...], tuple[Any, ...]]:
    """The entries that can be read, and the others."""
    if not isinstance(items, list):
        raise ValueError("its slides are no list")
    records, unreadable = [], []
    for number, item in enumerate(items, 1):
        record = _attempt(lambda item=item: _record(item), problems, consequence.format(number))
        records.append(record) if record else unreadable.append(item)
    return tuple(records), tuple(unreadable)


def _attempt(read: Callable[..., _T], problems: list[str], consequence: str) -> _T | None:
    try:
        return read()
    except (SparseSegError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        problems.append(f"{consequence}: {str(error)[:200].rstrip('.')}")
        return None


def _record(item: dict[str, Any]) -> SlideRecord:
    names = {f.name for f in fields(SlideRecord)}
    record = SlideRecord(**{k: v for k, v in item.items() if k in names})
    classes = tuple(ClassDef(**c) for c in item.get("classes", ()))
    if len({c.id for c in classes}) < len(classes):
        raise ValueError("its classes repeat an id")
    record = replace(record, classes=classes)
    if record.mpp is not None:
        record = replace(record, mpp=(float(record.mpp[0]), float(record.mpp[1])))
        if not all(_MPP[0] <= v <= _MPP[1] for v in cast("tuple[float, float]", record.mpp)):
            raise ValueError(f"mpp {record.mpp} is not a resolution")
    texts = (record.path, record.fingerprint, record.annotations, record.relative)
    if not all(isinstance(v, str) and len(v) <= _MAX_TEXT and "\0" not in v for v in texts):
        raise ValueError("its path, fingerprint or annotation file is not a name")
    for text in texts:
        os.fsencode(text)  # UnicodeEncodeError, a ValueError, for a name that no file can have
    if record.role not in get_args(Role):
        raise ValueError(f"its role is {record.role!r}")
    if not all(type(n) is int and 0 <= n < 1 << 53 for n in (record.strokes, record.version)):
        raise ValueError("its stroke count is not a number")
    if not (record.image is None or type(record.image) is int) or type(record.crop) is not bool:
        raise ValueError("its image or crop is not what it should be")
    return record
