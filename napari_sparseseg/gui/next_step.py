"""What the user can do now, in one sentence: the guide of the first minutes, and later the odd hint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.sections.classes.label_statistics import LabelStatistics
    from napari_sparseseg.session.status import Status

STATES = {
    "idle": "Ready",
    "training": "Training",
    "paused": "Paused",
    "predicting": "Predicting the slide",
    "failed": "Failed",
}
FEW_STROKES = 4


def state_line(status: Status, jobs: Sequence[str], *, has_slide: bool) -> str:
    """The line at the top of the panel."""
    if status.state == "predicting" and status.progress is not None:
        return f"Predicting the slide, {status.progress:.0%}".replace("%", " %")
    if jobs:
        return f"{jobs[0]}…"
    if not has_slide and status.state == "idle":
        return "No slide open"
    if status.state == "training" and not status.model_version:
        return "Preparing the network"
    return STATES[status.state]


def next_step(
    status: Status,
    classes: Sequence[ClassDef],
    statistics: LabelStatistics,
    *,
    has_slide: bool,
    live: bool,
    known: Sequence[ClassDef] = (),
) -> str:
    """One sentence, or nothing where nothing needs saying; `known` are the classes of the model."""
    if not has_slide:
        return "1 of 3: open a slide, drop one on the viewer, or try the sample."
    if status.state in ("failed", "predicting"):
        return ""
    if len(classes) < 2:
        return "Add a second class: there is nothing to learn from one."
    if status.model_version:
        return _with_model(status, classes, statistics, known, live=live)
    return _first_steps(classes, statistics.labelled, waits=status.state in ("training", "paused"))


def _first_steps(classes: Sequence[ClassDef], labelled: Sequence[int], *, waits: bool) -> str:
    if not labelled:
        return "2 of 3: choose a class below and draw a few strokes on the slide. Hold Space to move about."
    if len(labelled) < 2:
        names = {c.id: c.name for c in classes}
        other = next((c.name for c in classes if c.id not in labelled), "another class")
        return f"2 of 3: only {names.get(labelled[0], 'one class')} is drawn so far; draw some {other} too."
    return "" if waits else "3 of 3: press Train. The prediction appears within seconds; go on drawing meanwhile."


def _with_model(
    status: Status,
    classes: Sequence[ClassDef],
    statistics: LabelStatistics,
    known: Sequence[ClassDef],
    *,
    live: bool,
) -> str:
    differs = _disagreement(classes, statistics.labelled, known) if status.state == "idle" else ""
    if differs:
        return differs
    if not live:
        return "Live prediction is off: switch it on under Predict to see what the model makes of the slide."
    if not statistics.labelled:
        return "The model predicts what is on screen. To teach it more, draw strokes of two classes and press Train."
    thin = [c.name for c in classes if statistics.strokes.get(c.id, 0) == 0]
    if thin:
        return f"Nothing is drawn as {thin[0]} yet: draw some, or remove the class."
    if status.state == "training" and sum(statistics.strokes.values()) < FEW_STROKES * len(classes):
        return "Correct it where it is wrong: every stroke is learned as you lift the pen."
    return ""


def _disagreement(classes: Sequence[ClassDef], labelled: Sequence[int], known: Sequence[ClassDef]) -> str:
    """What a loaded model and the table do not have in common, and what to do about it."""
    ids, table = {c.id for c in known}, {c.id for c in classes}
    new = next((c.name for c in classes if c.id in labelled and c.id not in ids), None)
    if new is not None:
        return f"The model does not know {new} yet: press Train, and it learns what you have drawn."
    gone = next((c.name for c in known if c.id not in table), None)
    return "" if gone is None else f"The model still looks for {gone}, which is no class here any more: train it anew."
