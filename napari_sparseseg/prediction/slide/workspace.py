"""Files of a run: the unfinished ones with their journal, and the move of the finished ones into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from itertools import chain
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.files import is_link, links_in
from napari_sparseseg.io.ome_tiff import read_record
from napari_sparseseg.io.ome_zarr import PredictionStore, create_store
from napari_sparseseg.prediction.results.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.io.ome_zarr import StoreLayout
    from napari_sparseseg.prediction.tiles import SavableSegmenter

_OME_ZARR, _OME_TIFF = (".ome.zarr",), (".ome.tif", ".ome.tiff")


class Workspace:
    """The folder ``OUT.partial`` beside the output, owned by one process at a time.

    It contains journal and prediction store until the run is complete, so that an interrupted run can be resumed.
    GeoJSON and CSV are written beside their targets as ``.NAME.partial``, so that publishing them is a rename. Use as a
    context manager.

    Parameters
    ----------
    out
        The label image, ``.ome.zarr`` or ``.ome.tif``.
    tables
        GeoJSON and CSV files.

    Raises
    ------
    PredictionError
        For another suffix, a missing folder, a link inside the folder, or a folder that another process uses.
    """

    def __init__(self, out: Path, tables: Sequence[Path]) -> None:
        name = out.name.lower()
        if not name.endswith(_OME_ZARR + _OME_TIFF):
            raise PredictionError(
                f"output {out} ends with neither {', nor '.join(_OME_ZARR + _OME_TIFF)}; the ending chooses the format."
            )
        self.out, self.tables = out, list(tables)
        self.is_tiff = name.endswith(_OME_TIFF)
        self.folder = out.with_name(out.name + ".partial")
        self.store = self.folder / "prediction.ome.zarr"
        self.tiff = self.folder / "prediction.ome.tif"
        self.model = self.folder / "model.safetensors"
        self.tissue = self.folder / "tissue.npz"
        self.regions = self.folder / "regions.json"
        self._lock_file = self.folder / "lock"
        self._lock = FileLock(self._lock_file)
        for path in (out, *self.tables):
            if not path.parent.is_dir():
                raise PredictionError(f"there is no folder {path.parent} to write {path.name} into; make it first.")

    def __enter__(self) -> Workspace:
        links = filter(is_link, (self.folder, *map(self.temporary, self.tables)))
        link = next(chain(links, links_in(self.folder) if self.folder.is_dir() else ()), None)
        if link is not None:  # a folder from somebody else could make us write through it
            raise PredictionError(f"{link} is a link to elsewhere; remove it, or choose another output.")
        self.folder.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise PredictionError(
                f"another process is writing {self.out}; wait for it, or choose another name."
            ) from error
        self.journal = Journal(self.folder / "journal.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if not self.journal.started and self.journal.header is None:
            self._discard()

    def save_model(self, model: SavableSegmenter) -> str:
        """Save the model for workers elsewhere; returns a hash of what decides its answers."""
        model.save(self.model)
        return model_hash(self.model, model.metadata.to_json())

    def is_complete(self, header: dict[str, Any]) -> bool:
        """Whether the output exists and was made by a run with this header."""
        if not self.out.exists():
            return False
        if self.is_tiff:
            return read_record(self.out) == header
        try:
            return PredictionStore(self.out, "r").record == header
        except PredictionError:
            return False

    def check_free(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse to write over files that are not this run's own.

        Raises
        ------
        PredictionError
            Naming the file.
        """
        if overwrite:
            return
        own = self.journal.placing if resume else []
        for path in (self.out, *self.tables):
            if path.exists() and str(path) not in own:
                raise PredictionError(f"{path} exists; choose another name, or ask to overwrite it.")

    def can_resume(self, header: dict[str, Any]) -> bool:
        """Whether the folder contains an unfinished run with this header."""
        return self.journal.header == header and self.store.exists()

    def begin(self, header: dict[str, Any], layout: StoreLayout) -> None:
        """Discard what an earlier run left, except lock and model, and make an empty store."""
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry not in (self._lock_file, self.model):
                entry.unlink()
        create_store(self.store, layout, header)
        self.journal.begin(header)

    def temporary(self, target: Path) -> Path:
        """Where a table is written before it is published."""
        return target.with_name(f".{target.name}.partial")

    def publish(self, tables: Sequence[Path], *, image: bool = True) -> None:
        """Rename finished files to their targets, the image last, and remove the folder."""
        self.journal.place([str(path) for path in (*tables, self.out)])
        for table in tables:
            os.replace(self.temporary(table), table)
        if image:
            if self.out.is_dir():
                os.replace(self.out, self.folder / "replaced")
            elif self.out.exists() and not self.is_tiff:
                self.out.unlink()
            os.replace(self.tiff if self.is_tiff else self.store, self.out)
        self._lock.release()
        self._discard()

    def _discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def model_hash(path: Path, metadata: dict[str, Any]) -> str:
    """SHA-256 of a saved model: its tensors, and the parts of its metadata that decide its answers.

    The safetensors header lists its entries in no fixed order, so tensors are hashed by name.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
        entries.pop("__metadata__", None)
        digest = hashlib.sha256()
        for name in sorted(entries):
            entry = entries[name]
            begin, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(8 + size + begin)
            digest.update(file.read(end - begin))
    decisive = {k: metadata[k] for k in ("classes", "mpp", "encoder", "channels", "dtype", "extra")}
    if metadata["rules"]["edges"] == "background":  # other models have the hash that they had before rules were stored
        decisive["edges"] = "background"
    digest.update(json.dumps(decisive, sort_keys=True, default=str).encode())
    return digest.hexdigest()
