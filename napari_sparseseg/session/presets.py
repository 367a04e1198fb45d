"""A class table with training settings as one small JSON file, to pass on or to begin from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import ClassDef, TrainConfig, make_classes, match_classes
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.files import OwnFiles, write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from napari_sparseseg.session.slides import SlideCollection
    from napari_sparseseg.session.training import Training

FORMAT, VERSION = "napari-sparseseg preset", 1
MOST_BYTES = 1 << 20
MOST_TEXT = 1000
LEFT_OUT = ("device",)
"""Settings of a computer rather than of a task."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset file holds.

    Attributes
    ----------
    classes
        The class table.
    config
        Training settings with the name of the encoder; the device is that of the computer.
    """

    classes: tuple[ClassDef, ...]
    config: TrainConfig


class Presets:
    """Saves and loads presets; `Session.presets`.

    Parameters
    ----------
    slides, training
        Of the session.
    assign_classes
        Replaces the class table of all slides, as one step of the history.
    changed
        Called when the settings are others.

    Examples
    --------
    >>> from napari_sparseseg import Session, TrainConfig
    >>> with Session(["tumour", "stroma"], config=TrainConfig(mpp=2.0)) as session:
    ...     session.presets.save("tumour.json")
    >>> with Session() as session:
    ...     preset = session.presets.load("tumour.json")
    ...     [c.name for c in session.classes], session.config.mpp
    (['tumour', 'stroma'], 2.0)
    """

    def __init__(
        self,
        slides: SlideCollection,
        training: Training,
        assign_classes: Callable[[tuple[ClassDef, ...]], object],
        changed: Callable[[], object],
    ) -> None:
        self._slides, self._training = slides, training
        self._assign_classes, self._changed = assign_classes, changed
        self._written = OwnFiles()

    def save(self, path: str | os.PathLike[str], *, config: TrainConfig | None = None, overwrite: bool = False) -> None:
        """Write class table and settings, by default those of the session.

        Raises
        ------
        SparseSegError
            Where another file is there, or the file cannot be written.
        """
        self._slides.require_open()
        target = Path(path)
        self._written.require(target, SparseSegError, overwrite=overwrite)
        settings = {k: v for k, v in asdict(config or self._training.settings).items() if k not in LEFT_OUT}
        data = {
            "format": FORMAT, "version": VERSION, "classes": [asdict(c) for c in self._slides.classes],
            "training": settings,
        }  # fmt: skip
        text = json.dumps(data, indent=1, ensure_ascii=False)
        try:
            write_atomic(target, lambda part: part.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise SparseSegError(f"cannot write {target}: {error.strerror or error}.") from error
        self._written.add(target)

    def load(self, path: str | os.PathLike[str], *, settings: bool = True) -> Preset:
        """Use the class table and, with `settings`, the training settings of a preset or model file; returns them.

        While nothing is labelled the table replaces the session's; else its classes are matched by name and new ones
        added, so that no label is lost: one step of `Session.history`. An encoder that is named in the file is not
        downloaded unless the user asks for it.

        Raises
        ------
        SparseSegError
            Where it is neither, or a value in it cannot be used; nothing is changed then.
        """
        self._slides.require_open()
        preset = read_preset(path)
        table, _ = match_classes(self._slides.classes if self._slides.labelled else (), preset.classes)
        if table != self._slides.classes:
            self._assign_classes(table)
        if settings:
            self._training.recall(replace(preset.config, device=self._training.settings.device))
            self._changed()
        return preset


def read_preset(path: str | os.PathLike[str]) -> Preset:
    """What a preset file or a model file (``.safetensors``) says; nothing in it is executed or downloaded.

    Raises
    ------
    SparseSegError
        One line: what is wrong with the file.
    """
    file = Path(path)
    if file.suffix.lower() == ".safetensors":
        from napari_sparseseg.learning.model_file import read_metadata

        metadata = read_metadata(file)
        return Preset(metadata.classes, replace(metadata.config, encoder=metadata.encoder, device="auto"))
    try:
        if not file.is_file():
            raise SparseSegError(f"cannot read {file}: there is no such file.")
        if file.stat().st_size > MOST_BYTES:
            raise SparseSegError(f"{file} is no preset: it has {file.stat().st_size} bytes, a preset a few thousand.")
        return _preset(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise SparseSegError(f"cannot read {file}: {error.strerror or error}.") from error
    except (_UnusableError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise SparseSegError(f"{file} is no preset that can be used: {reason}.") from error


class _UnusableError(Exception):
    """What is wrong, as a clause."""


def _preset(data: Any) -> Preset:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _UnusableError("it does not say that it is one")
    if type(data.get("version")) is not int or data["version"] < 1:
        raise _UnusableError("its version is no number")
    if data["version"] > VERSION:
        raise _UnusableError(f"it was written by a newer version ({data['version']}); update napari-sparseseg")
    listed, settings = data.get("classes"), data.get("training")
    if not isinstance(listed, list) or not isinstance(settings, dict):
        raise _UnusableError("its classes are no list, or its training settings no table")
    try:
        classes = make_classes(_class(item) for item in listed)
        config = TrainConfig().updated({k: v for k, v in settings.items() if k not in LEFT_OUT})
    except SparseSegError as error:
        raise _UnusableError(str(error)) from error
    if not classes:
        raise _UnusableError("it has no classes")
    if len(config.encoder) > MOST_TEXT or not config.encoder.isprintable() or not config.encoder.strip():
        raise _UnusableError("its encoder is no name")
    return Preset(classes, config)


def _class(item: Any) -> ClassDef:
    if not isinstance(item, dict) or set(item) != {f.name for f in fields(ClassDef)}:
        raise _UnusableError("a class is not {id, name, colour}")
    if type(item["id"]) is not int or not isinstance(item["name"], str) or not isinstance(item["colour"], str):
        raise _UnusableError("the id, name or colour of a class is not what it should be")
    return ClassDef(**item)
