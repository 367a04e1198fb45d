"""The strokes of a slide as a list: what the model says of each, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.prediction.agreement import StrokeAgreement
    from napari_sparseseg.session.engine import Engine
    from napari_sparseseg.session.slides import SlideCollection, SlideEntry
    from napari_sparseseg.session.training import Training
    from napari_sparseseg.slides import Slide

    Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ListedStroke:
    """A stroke or dense region, and how well the model agrees with it.

    Attributes
    ----------
    id
        Of the stroke, for `StrokeList.change`.
    kind
        ``brush``, ``polygon``, ``fill`` (without an outline) or ``dense``.
    class_id
        What it was labelled as.
    box
        Around it, level-0 pixels.
    pixels
        Level-0 pixels that it labels still; of a large one an estimate. 0: all of it was drawn over or erased.
    held_out
        Whether the model has not been trained on it, so that its loss is a test.
    loss
        Mean over its pixels of -log of the probability of its class: 0 where the model is sure of it, 6.9 at most. None
        where it was not scored: no model, a class that the model does not have, or no pixels left.
    predicted
        Pixels at the model's resolution by predicted class id; empty where it was not scored. Of a long stroke a part.
    """

    id: int
    kind: str
    class_id: int
    box: Box
    pixels: int
    held_out: bool
    loss: float | None = None
    predicted: Mapping[int, int] = field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """Share 0..1 of its pixels that are predicted as its class; None where it was not scored."""
        total = sum(self.predicted.values())
        return self.predicted.get(self.class_id, 0) / total if total else None

    @property
    def mostly(self) -> int | None:
        """Class id that most of its pixels are predicted as; None where it was not scored."""
        return max(self.predicted, key=lambda c: self.predicted[c]) if self.predicted else None


class StrokeList:
    """Lists, scores and changes the strokes and dense regions of open slides; `Session.strokes`.

    Parameters
    ----------
    slides, training, engine
        Of the session.

    Examples
    --------
    >>> from napari_sparseseg import Session
    >>> from napari_sparseseg.samples import sample_scribbles, sample_slide
    >>> with Session() as session:
    ...     slide = session.open(sample_slide())
    ...     added = session.import_annotations(sample_scribbles())
    ...     listed = session.strokes.list()
    ...     session.strokes.change([listed[0].id], 0)
    ...     len(session.strokes.list()) == len(listed) - 1, session.history.next_undo
    (True, 'removal of polygon')
    """

    def __init__(self, slides: SlideCollection, training: Training, engine: Engine) -> None:
        self._slides, self._training, self._engine = slides, training, engine
        self._scored_by: Model | OnnxModel | None = None
        self._known: dict[str, dict[Key, StrokeAgreement]] = {}

    def list(self, slide: Slide | None = None) -> tuple[ListedStroke, ...]:
        """The strokes and regions of an open slide, in the order of drawing, with the losses that `score` found last.

        None: of the active slide. Strokes that erase are left out. It counts pixels, which takes a
        while where there are thousands: call it off the GUI thread.

        Raises
        ------
        SlideError
            Where no slide is open.
        """
        entry = self._slides.entry_of(slide)
        return self._listed(entry, entry.annotations.snapshot())

    def score(
        self,
        slide: Slide | None = None,
        *,
        progress: Callable[[float], object] | None = None,
        stop: threading.Event | None = None,
    ) -> tuple[ListedStroke, ...]:
        """Compare the strokes of an open slide with the model's prediction: the largest loss first, unscored ones last.

        Losses of strokes that were scored before by this model are kept. Any thread but the GUI's: it predicts, in
        short pieces on the engine's thread, between which training and the live view go on.

        Parameters
        ----------
        slide
            None: the active one.
        progress
            Called with 0..1.
        stop
            Set it from another thread to get what is known by then.

        Raises
        ------
        PredictionError
            Without a model.
        SlideError
            Where no slide is open.
        """
        from napari_sparseseg.learning.sources import Source
        from napari_sparseseg.prediction.agreement import AgreementScorer, StrokeAgreement

        entry, model = self._slides.entry_of(slide), self._training.model
        if model is None:
            raise PredictionError("there is no model yet; train one or load one first.")
        if model is not self._scored_by:
            self._scored_by, self._known = model, {}
        known = self._known.setdefault(entry.key, {})
        snapshot = entry.annotations.snapshot()
        listed = self._listed(entry, snapshot)
        keys = {s.id: (s.id, s.class_id, s.pixels) for s in listed if s.pixels}
        wanted = [s for s in (*snapshot.strokes, *snapshot.dense_regions) if s.id in keys and keys[s.id] not in known]
        source = Source(entry.slide, snapshot, entry.slide.frame(model.metadata.mpp), entry.role)
        scorer = AgreementScorer(model, source, wanted)
        for done in range(scorer.windows):
            if stop is not None and stop.is_set():
                break
            self._engine.call(scorer.advance)
            if progress is not None:
                progress((done + 1) / scorer.windows)
        # what the model cannot say is known too, and not asked again
        left = scorer.pending
        known.update({keys[s.id]: scorer.found.get(s.id, StrokeAgreement()) for s in wanted if s.id not in left})
        found = [_with(s, known.get(keys.get(s.id, (0, 0, 0)))) for s in listed]
        return tuple(sorted(found, key=lambda s: -1.0 if s.loss is None else s.loss, reverse=True))

    def change(self, ids: Iterable[int], class_id: int, slide: Slide | None = None) -> None:
        """Give strokes another class, or remove them with `class_id` 0, as one step of `Session.history`.

        What that does to pixels that several strokes cover: see `Annotations.change_strokes`.

        Raises
        ------
        AnnotationError
            Where there is no such stroke or class, or a stroke is being drawn.
        """
        self._slides.entry_of(slide).annotations.change_strokes(ids, class_id)

    def _listed(self, entry: SlideEntry, snapshot: Snapshot) -> tuple[ListedStroke, ...]:
        from napari_sparseseg.prediction.agreement import count_pixels

        every, ids = self._held(entry)
        known = self._known.get(entry.key, {})
        out = []
        for stroke in sorted((*snapshot.strokes, *snapshot.dense_regions), key=lambda s: s.id):
            if stroke.class_id:
                pixels = count_pixels(snapshot, stroke)
                held = every or stroke.id in ids
                row = ListedStroke(stroke.id, stroke.kind, stroke.class_id, Box(*stroke.box), pixels, held)
                out.append(_with(row, known.get((stroke.id, stroke.class_id, pixels))))
        return tuple(out)

    def _held(self, entry: SlideEntry) -> tuple[bool, set[int]]:
        """Whether all of a slide is held out, and the ids of the strokes that are."""
        if entry.role == "held-out" or self._training.model is None:
            return entry.role == "held-out", set()

        def look() -> tuple[bool, set[int]]:
            held = self._training.held
            if held is None:
                return False, set()
            units = [unit for k, own in held.exclude.items() if held.sources[k].slide is entry.slide for unit in own]
            return any(u.stroke is None for u in units), {u.stroke.id for u in units if u.stroke is not None}

        return self._engine.call(look)


def confusion_of(strokes: Sequence[ListedStroke], class_ids: Sequence[int]) -> NDArray[np.int64]:
    """Pixels of scored strokes by class (row) and predicted class (column).

    Parameters
    ----------
    strokes
        As `StrokeList.score` gives them.
    class_ids
        K ids, in the order wanted.

    Returns
    -------
    int64 (K, K). Each pixel counts the same, so that a large stroke counts more than a small one.

    Examples
    --------
    >>> stroke = ListedStroke(1, "brush", 2, Box(0, 0, 10, 10), 100, True, 0.7, {1: 25, 2: 75})
    >>> confusion_of([stroke], [1, 2]).tolist()
    [[0, 0], [25, 75]]
    """
    at = {c: k for k, c in enumerate(class_ids)}
    counts = np.zeros((len(at), len(at)), np.int64)
    for stroke in strokes:
        for predicted, pixels in stroke.predicted.items():
            if stroke.class_id in at and predicted in at:
                counts[at[stroke.class_id], at[predicted]] += pixels
    return counts


def _with(row: ListedStroke, found: StrokeAgreement | None) -> ListedStroke:
    if found is None or not found.pixels:
        return row
    predicted = {int(c): int(found.predicted[c]) for c in np.flatnonzero(found.predicted)}
    return replace(row, loss=found.loss / found.pixels, predicted=predicted)
