"""User-facing errors: each message says what failed, what was found and what to do.

The shell prints the message as one line and exits with 2, the panel shows the same text. Any other exception is a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike


class SparseSegError(Exception):
    """Base class for user-facing errors.

    Examples
    --------
    >>> from napari_sparseseg import SparseSegError, open_slide
    >>> try:
    ...     open_slide("missing.svs")
    ... except SparseSegError as error:
    ...     print(error)
    cannot open slide missing.svs: there is no such file. Check the path; has it been moved?
    """


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
            f"slide {path} was overwritten or replaced since it was opened. The new file was not used. Your strokes "
            "and model still refer to the old one. Save, close the slide and open it again."
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


class SessionClosedError(SparseSegError):
    """An act on a session that was closed; `stop`, `hold` and `close` are none, because nothing runs any more."""

    def __init__(self) -> None:
        super().__init__(
            "the session is closed: nothing was changed. Open a new one, or load its project (Session.load)."
        )


class AnnotationError(SparseSegError):
    """An annotation file or a drawing command is not valid."""


class AnnotationWarning(UserWarning):
    """Some objects of an annotation file were left out, or label nothing."""


class ProjectError(SparseSegError):
    """A project folder cannot be read, written or locked."""


class ModelError(SparseSegError):
    """A model file or an encoder cannot be used."""


class TrainingError(SparseSegError):
    """Training cannot start or cannot go on."""


class PredictionError(SparseSegError):
    """A prediction cannot be made or written."""


class PredictionStopped(PredictionError):
    """A prediction was ended early on request."""
