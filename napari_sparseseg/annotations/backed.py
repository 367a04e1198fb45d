"""Annotations with a file: load, save, and keep every stroke as it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_sparseseg.annotations.autosave import FileKeeper
from napari_sparseseg.annotations.regions import ClassEditing
from napari_sparseseg.annotations.sqlite_file import DamagedFileError, read_contents, write_contents
from napari_sparseseg.errors import AnnotationError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    import os
    from typing import Self

    from napari_sparseseg.annotations.sqlite_file import Contents


class FileBacked(ClassEditing):
    """Annotations that can be bound to a file."""

    saved_changed = Signal(bool)

    _file: FileKeeper | None = None
    _saved_token = ""
    _told_saved = False

    @property
    def path(self) -> Path | None:
        """The file these annotations are bound to, or None."""
        return None if self._file is None else self._file.path

    @property
    def saved(self) -> bool:
        """Whether everything committed is on disk: in the bound file, or where it was last saved or loaded."""
        return self._file.saved if self._file is not None else self._saved_token == self._token

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Annotations from a file, not bound to it: changes are not kept until `attach` or `save`.

        Raises
        ------
        AnnotationError
            Where it is no annotation file, or was written by a newer version.
        DamagedFileError
            Where it is damaged; says how much `rescue` could bring back.
        """
        contents = read_contents(Path(path))
        try:
            out = cls(contents.shape, contents.classes)
            out.adopt(contents)
        except AnnotationError as error:
            raise DamagedFileError(Path(path), str(error).rstrip(".")) from error
        return out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file, which is replaced as a whole; the binding to a file, if any, stays as it is.

        Raises
        ------
        FileInUseError
            Where another program writes to it.
        AnnotationError
            Where it cannot be written.
        """
        target = Path(path)
        with self._lock:
            if self._file is not None and self._file.path == target.resolve():
                self._file.keep_all(self.contents())
                self._file.complain()
            else:
                write_contents(target, self.contents())
                self._saved_token = self._token
        self._tell_saved()

    def attach(self, path: str | os.PathLike[str]) -> None:
        """Bind to a file: from now on every commit, undo and redo is durable before it returns.

        A new file gets what is drawn. A file that is there is taken over by annotations in which nothing was drawn yet;
        otherwise it must hold the same as these, as after `save`. A binding to another file ends.

        Raises
        ------
        FileInUseError
            Where another program writes to it; `load` still reads it.
        AnnotationError
            Where it holds something else, was made for another slide, or cannot be written.
        """
        target = Path(path)
        if self.path == target.resolve():
            return
        with self._lock:
            keeper = FileKeeper(target)
            try:
                found = None if keeper.is_new else read_contents(target)
                adopt = found is not None and found.token != self._token
                keeper.tokens.update([found.token] if found is not None else [])
                if found is not None and adopt:
                    self._require_adoptable(target, found)
                    self.adopt(found)
                elif found is None:
                    keeper.keep_all(self.contents())
                    keeper.complain()
            except AnnotationError:
                keeper.close()
                raise
            self._release()
            self._file = self._keeper = keeper
        self._tell_saved()
        if adopt:
            self.classes_changed.emit()
            self.changed.emit(self._version, Box(0, 0, *self.shape))

    def close(self) -> None:
        """End the binding to a file; the annotations stay usable."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._file is not None:
            self._saved_token = self._token if self._file.saved else ""
            self._file.close()
            self._file = self._keeper = None

    def _require_adoptable(self, path: Path, found: Contents) -> None:
        if found.shape != self.shape:
            raise AnnotationError(
                f"{path} was drawn on a slide of {found.shape} pixels, this one has {self.shape}; open the slide it "
                "belongs to."
            )
        if self._version > 0:
            raise AnnotationError(
                f"{path} holds other annotations; save to another file, or remove it first if it is not needed."
            )

    def _complain(self) -> None:
        self._tell_saved()
        super()._complain()

    def _tell_saved(self) -> None:
        if self.saved != self._told_saved:
            self._told_saved = self.saved
            self.saved_changed.emit(self._told_saved)

    def adopt(self, contents: Contents) -> None:
        """Take over what a file holds; nothing may have been drawn yet."""
        super().adopt(contents)
        self._saved_token = self._token
