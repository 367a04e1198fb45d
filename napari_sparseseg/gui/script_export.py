"""What was done in the panel as a script and as shell commands that run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.session.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from napari_sparseseg.session.session import Session

DEFAULT_SECONDS = 60
_SHELL = ("balancing", "mpp", "encoder", "device", "seed")


def as_python(session: Session, seconds: float | None) -> str:
    """A script that trains on the same slides, annotations and settings, and predicts the active slide."""
    changed = _changed(session.config)
    settings = "".join(f", {name}={value!r}" for name, value in changed.items())
    lines = ["from napari_sparseseg import Session", "", "with Session(()) as session:"]
    for slide, drawn in _files(session):
        lines.append(f"    session.open({str(slide)!r})")
        if drawn is not None:
            lines.append(f"    session.import_annotations({str(drawn)!r})")
    lines += [
        f"    session.train({session.config.balancing!r}, seconds={seconds or DEFAULT_SECONDS:g}{settings}, wait=True)",
        '    session.save_model("model.safetensors")',
        '    session.predict_slide("prediction.ome.zarr", overwrite=True)',
    ]
    return "\n".join(lines) + "\n"


def as_command(session: Session, seconds: float | None) -> str:
    """Shell commands that do the same; settings that the shell does not have are left at their defaults."""
    files = _files(session)
    train = ["napari-sparseseg", "train", *(str(slide) for slide, _ in files)]
    given = [str(a) for _, a in files if a is not None]
    if len(given) == len(files):
        train += ["--annotations", *given]
    train += ["--model", "model.safetensors", "--seconds", f"{seconds or DEFAULT_SECONDS:g}"]
    config = {"balancing": session.config.balancing, **_changed(session.config)}
    for name, value in config.items():
        if name in _SHELL:
            train += [f"--{name}", str(value)]
    active = str(session.slide.path)
    predict = ["napari-sparseseg", "predict", active, "--model", "model.safetensors"]
    predict += ["--output", "prediction.ome.zarr", "--overwrite"]
    return shlex.join(train) + "\n" + shlex.join(predict) + "\n"


def _changed(config: TrainConfig) -> dict[str, Any]:
    """Settings that differ from the defaults, balancing left out."""
    plain = TrainConfig()
    names = [f.name for f in fields(TrainConfig) if f.name != "balancing"]
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(plain, n)}


def _files(session: Session) -> list[tuple[str, Path | None]]:
    """Every training slide's file, and the file its annotations are kept in."""
    project = None if session.project is None else Project.open(session.project)
    found: list[tuple[str, Path | None]] = []
    for entry in session.set.entries:
        if entry.role == "train":
            path = str(entry.slide.path)
            record = None if project is None else project.record_for(path, entry.slide.fingerprint, entry.role)
            kept = None if project is None or record is None else project.annotations_path(record)
            found.append((path, kept))
    return found
