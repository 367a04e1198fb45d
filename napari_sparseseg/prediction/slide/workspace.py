"""The files of a run: where the unfinished ones lie, and how the finished ones come into place."""

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
from napari_sparseseg.prediction.slide.journal import Journal
from napari_sparseseg.prediction.slide.options import OME_TIFF, OME_ZARR

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Workspace:
    """The folder ``OUT.partial`` beside the output, owned by one process at a time.

    It holds journal and prediction store until the run is complete; a run that was killed finds them there. GeoJSON and
    CSV are written beside their targets as ``.NAME.partial``, so that putting them in place is a rename.
    """

    def __init__(self, out: Path, tables: Sequence[Path]) -> None:
        name = out.name.lower()
        if not name.endswith(OME_ZARR + OME_TIFF):
            raise PredictionError(
                f"output {out} is neither {', nor '.join(OME_ZARR + OME_TIFF)}; the name's end chooses the format."
            )
        self.out, self.tables = out, list(tables)
        self.is_tiff = name.endswith(OME_TIFF)
        self.folder = out.with_name(out.name + ".partial")
        self.store = self.folder / "prediction.ome.zarr"
        self.tiff = self.folder / "prediction.ome.tif"
        self.model = self.folder / "model.safetensors"
        self.tissue = self.folder / "tissue.npz"
        self._lock_file = self.folder / "lock"
        self._lock = FileLock(self._lock_file)
        for path in (out, *self.tables):
            if not path.parent.is_dir():
                raise PredictionError(f"there is no folder {path.parent} to write {path.name} into; make it first.")

    def __enter__(self) -> Workspace:
        links = filter(is_link, (self.folder, *map(self.temporary, self.tables)))
        link = next(chain(links, links_in(self.folder) if self.folder.is_dir() else ()), None)
        if link is not None:  # in a folder that somebody sent: it would be written through
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
            self.discard()

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

    def clear(self) -> None:
        """Throw away what an earlier run left, but keep lock and model."""
        for entry in self.folder.iterdir():
            if entry not in (self._lock_file, self.model):
                _remove(entry)

    def temporary(self, target: Path) -> Path:
        """Where a table is written before it is put in place."""
        return target.with_name(f".{target.name}.partial")

    def place(self, tables: Sequence[Path], *, image: bool = True) -> None:
        """Put files in place by renaming, the image last, and remove the folder."""
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
        self.discard()

    def discard(self) -> None:
        """Remove the folder, as far as the file system lets us."""
        shutil.rmtree(self.folder, ignore_errors=True)


def model_hash(path: Path, metadata: dict[str, Any]) -> str:
    """Hash of a saved model: its tensors, and the metadata that decides the answer.

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
    digest.update(json.dumps(decisive, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
