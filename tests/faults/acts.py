"""What a user does with a session, as plain values, and what there is afterwards: for a process that can be killed.

`serve` runs in a child of a fork server; `User` is this side of it. An act that was answered was promised.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import SparseSegError
from tests.faults.jobs import Teller
from tests.helpers.data import labelled_polygon
from tests.helpers.limits import limit_file_size

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from napari_sparseseg import Session
    from napari_sparseseg.annotations.merging import Conflict
    from napari_sparseseg.session.persistence import Exists

SIDE = 96
SLIDES = ("a.tif", "b.tif", "c.tif")


def perform(session: Session, folder: Path, act: tuple[Any, ...]) -> None:
    """Do one act; slides are beside `folder`, and projects are saved in it."""
    name, *values = act
    PERFORM[name](session, folder, *values)


def _is_open(session: Session, k: int) -> bool:
    return SLIDES[k] in (Path(s.path).name for s in session.slides)


def _activate(session: Session, _folder: Path, k: int) -> None:
    for slide in session.slides:
        if Path(slide.path).name == SLIDES[k]:
            session.activate(slide)


def _polygon(session: Session, _folder: Path, y: int, label: int, dense: bool) -> None:
    session.annotations.fill_polygon([(y, 10), (y, 60), (y + 20, 60), (y + 20, 10)], label, dense=dense)


def _history(session: Session, _folder: Path, act: str) -> None:
    getattr(session.annotations, act)()


def _set_classes(session: Session, _folder: Path, names: list[str]) -> None:
    """Names stand for ids 1, 2, ... in this order."""
    session.classes = tuple(ClassDef(k, name, f"#{k:02d}{len(name):02d}aa") for k, name in enumerate(names, 1))


def _configure(session: Session, _folder: Path, **settings: Any) -> None:
    session.config = dataclasses.replace(session.config, **settings)


def _draw(session: Session, folder: Path, strokes: int) -> None:
    """Draw, and tell of each stroke when it is on disk."""
    tell = Teller(folder)
    for k in range(strokes):
        y = 5 + k % (SIDE - 10)
        session.annotations.paint([(y, 5), (y, 90)], 2 + k % 3, 1 + k % 2)
        tell(len(session.annotations.strokes))


def _save(session: Session, folder: Path, name: str, exists: Exists = "refuse") -> None:
    path = session.project if not name and session.project is not None else folder / (name or "first")
    session.save(path, exists=exists)


def _rename_project(session: Session, folder: Path, name: str) -> None:
    """As a file manager does it, while the project is open; any act follows it."""
    if session.project is not None and session.project.parent == folder:
        session.project.rename(folder / name)
    session.config = session.config


def _move_away_and_back(session: Session, folder: Path, strokes: int) -> None:
    """The project is in the bin while somebody draws, then it is put back."""
    home, away = session.project, folder / "bin"
    away.mkdir(exist_ok=True)
    if saved := home is not None and home.parent == folder:
        home.rename(away / "inside")
    try:
        for k in range(strokes):
            session.annotations.paint([(7 + 5 * k, 3), (7 + 5 * k, 50)], 2, 1 + k % 2)
    finally:
        if saved:
            (away / "inside").rename(home)
    session.config = session.config  # any act goes back to the project


def _change_strokes(session: Session, _folder: Path, k: int, label: int) -> None:
    listed = session.strokes.list()
    if listed:
        session.strokes.change([listed[k % len(listed)].id], label)


def _change_region(session: Session, _folder: Path, y: int) -> None:
    """Move the newest dense region; where it would leave the slide, remove it."""
    if regions := session.annotations.dense_regions:
        if y < SIDE // 2:
            session.annotations.reshape_dense_region(regions[-1].id, [(y, 5), (y, 40), (y + 9, 40)])
        else:
            session.annotations.remove_dense_region(regions[-1].id)


def _exchange(session: Session, folder: Path) -> None:
    """Out as GeoJSON and in again on the slide that is active."""
    session.annotations.to_geojson(folder / "out.geojson", overwrite=True)
    session.import_annotations(folder / "out.geojson")


def _import(session: Session, folder: Path, name: str, conflict: Conflict) -> None:
    """A file of another program, with a class that may be new."""
    path = folder / "given.geojson"
    path.write_text(json.dumps(labelled_polygon([[[4, 4], [40, 4], [40, 30], [4, 4]]], name)))
    session.import_annotations(path, conflict)


def _preset(session: Session, folder: Path, load: bool) -> None:
    path = folder / "preset.json"
    if not load:
        session.presets.save(path, overwrite=True)
    elif path.exists():
        session.presets.load(path)


def _other_annotations(session: Session, _folder: Path, y: int) -> None:
    """Assign others, as *Restore* does with those of an earlier session."""
    others = Annotations(session.slide.shape, session.classes)
    others.paint([(y, 5), (y, 80)], 5, session.classes[0].id)
    session.annotations = others


def _model(session: Session, folder: Path, load: bool) -> None:
    path = folder / "model.safetensors"
    if not load and session.model is not None:
        session.save_model(path, overwrite=True)
    elif load and path.exists():
        session.load_model(path)


def _accept(session: Session, _folder: Path, y: int) -> None:
    if session.model is not None:
        session.clicks.accept([(y, y)])


def _predict(session: Session, folder: Path) -> None:
    """A result, with what is said of it; a run is no part of the project."""
    if session.model is not None:
        session.predict_slide(folder / "out", overwrite=True)
        session.results.measure_objects(folder / "out.ome.zarr", folder / "out.csv", overwrite=True)


PERFORM = {
    "open": lambda s, f, k: s.open(f.parent / SLIDES[k]),
    "activate": _activate,
    "remove": lambda s, _: s.remove(),
    "role": lambda s, _, role: s.set_role(role),
    "mpp": lambda s, _, mpp: s.set_mpp(mpp),
    "paint": lambda s, _, y, label: s.annotations.paint([(y, 5), (y + 3, 60)], 4, label),
    "erase": lambda s, _, y: s.annotations.erase([(y, 5), (y, 40)], 6),
    "polygon": _polygon,
    "history": _history,
    "draw": _draw,
    "classes": _set_classes,
    "configure": lambda s, f, patch, rate: _configure(s, f, patch_px=patch, learning_rate=rate),
    "save": _save,
    "rename project": _rename_project,
    "away and back": _move_away_and_back,
    "session history": lambda s, _, act: getattr(s.history, act)(),
    "change strokes": _change_strokes,
    "change region": _change_region,
    "forget history": lambda s, _: s.annotations.forget_history(),
    "exchange": _exchange,
    "import": _import,
    "preset": _preset,
    "other annotations": _other_annotations,
    "snap": lambda s, _: s.clicks.snap([(30, 20), (30, 40)], 3, s.classes[0].id),
    "superpixels": lambda s, _: s.clicks.superpixels([(50, 60), (60, 70)], s.classes[0].id),
    "take back": lambda s, _: s.clicks.take_back([(20, 20), (40, 40)]),
    "runs": lambda s, _, act: getattr(s.runs, act)(),
    "go to run": lambda s, _, k: [s.runs.use(r.id) for r in s.runs.list()[k : k + 1]],
    "model": _model,
    "accept": _accept,
    "predict": _predict,
    "no mpp": lambda s, _: s.set_mpp(None),
    "export": lambda s, f: s.annotations.to_geojson(f / "e.geojson"),
    "train": lambda s, _: s.train(steps=1, wait=True),
    "full": lambda _s, _f, size: limit_file_size(size),
}  # fmt: skip


def state(session: Session) -> dict[str, Any]:
    """What must be there again: slides with all that belongs to them, classes, settings, step of the model."""
    slides = {
        Path(e.slide.path).name: (e.role, e.slide.mpp, len(e.annotations.strokes), *labels_of(e.annotations))
        for e in session.entries
    }
    step = None if session.model is None else session.model.metadata.step
    classes = tuple((c.id, c.name, c.colour) for c in session.classes)
    return {"slides": slides, "classes": classes, "config": dataclasses.asdict(session.config), "step": step}


def labels_of(annotations: Annotations) -> tuple[int, int]:
    """Checksums of what is shown and of the scribbles alone."""
    box = (0, 0, *annotations.shape)
    return tuple(zlib.crc32(annotations.read(box, scribbles_only=only).tobytes()) for only in (False, True))


def start(project: Path | None) -> Session:
    """A new session, or one that goes on with what is on disk."""
    from napari_sparseseg import Session
    from napari_sparseseg.config import TrainConfig

    if project is None:
        return Session(["stripes", "dots"], config=TrainConfig(patch_px=64, batch_size=1, device="cpu"), autosave=True)
    session = Session.load(project, autosave=True)
    if session.status.message:
        raise AssertionError(session.status.message)
    return session


def serve(pipe: Connection, folder: Path, home: Path, project: Path | None) -> None:
    """Perform what comes through the pipe, and answer with the state, until "close" or a kill."""
    os.environ["NAPARI_SPARSESEG_HOME"] = str(home)
    session = start(project)
    pipe.send((None, state(session), session.project))
    while (act := pipe.recv()) != ("close",):
        refusal = None
        try:
            perform(session, folder, act)
        except SparseSegError as error:
            refusal = str(error)
        pipe.send((refusal, state(session), session.project))
    session.close()


class User:
    """A session in a process of its own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.project: Path | None = None
        self.state: dict[str, Any] = {}
        self.refusal: str | None = None
        self.start()

    def start(self) -> None:
        """Start the process, or another that goes on with what the last one left on disk."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.preloaded"])
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, self.folder, self.home, self.project), daemon=True)
        self._process.start()
        other.close()
        self._receive()

    def _receive(self) -> None:
        if not self._pipe.poll(120):
            raise AssertionError("no answer in 120 s")
        try:
            self.refusal, self.state, self.project = self._pipe.recv()
        except EOFError:
            raise AssertionError("the process ended by itself; its traceback is above") from None

    def do(self, act: tuple[Any, ...]) -> None:
        """Perform an act and wait for its end."""
        self._pipe.send(act)
        self._receive()

    def begin(self, act: tuple[Any, ...]) -> None:
        """Begin an act; the process will be killed meanwhile."""
        self._pipe.send(act)

    def end(self) -> None:
        """Wait for the end of an act that was begun."""
        self._receive()

    def kill(self) -> None:
        """kill -9; an act under way ends anywhere."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def close(self) -> None:
        """End the session as a user does."""
        self._pipe.send(("close",))
        self._process.join(60)
        if self._process.exitcode != 0:
            raise AssertionError(f"closing ended with {self._process.exitcode}")
        self._pipe.close()
