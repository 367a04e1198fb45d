"""What can go wrong, each with what failed, what was found and what to do.

Every error that a user's file or setting can cause derives from `SparseSegError`; the shell prints its text as one
line and exits with 2, the panel shows the same text. Anything else is a defect of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike


class SparseSegError(Exception):
    """Base of every error that a user can cause and can mend."""


class SlideError(SparseSegError):
    """A slide could be opened but not used as asked (closed, no mpp, bad box)."""


class SlideClosedError(SlideError):
    """The slide was closed; open it again to read it."""


class SlideChangedError(SlideError):
    """The file of an open slide was overwritten or replaced.

    Parameters
    ----------
    path
        The file or folder.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(
            f"slide {path} was overwritten or replaced since it was opened, and what lies there now is another slide. "
            "Nothing of that was used; strokes and model are kept and belong to the slide as it was. Save, close the "
            "slide and open it again."
        )


class SlideOpenError(SlideError):
    """A file is not a slide that can be opened.

    Parameters
    ----------
    path
        The file or folder.
    reason
        What was found, as a clause without a full stop.
    hint
        What the user can do about it, as a sentence.
    """

    def __init__(self, path: str | PathLike[str], reason: str, hint: str = "") -> None:
        self.path, self.reason, self.hint = str(path), reason, hint
        super().__init__(f"cannot open slide {self.path}: {reason}." + (f" {hint}" if hint else ""))


class AnnotationError(SparseSegError):
    """An annotation file or a drawing command is not valid."""


class ProjectError(SparseSegError):
    """A project folder cannot be read, written or locked."""


class ModelError(SparseSegError):
    """A model file or an encoder cannot be used."""


class TrainingError(SparseSegError):
    """Training cannot start or cannot go on."""


class PredictionError(SparseSegError):
    """A prediction cannot be made or written."""
