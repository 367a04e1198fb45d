"""Training: start, pause, stop; statistics of the labels; progress and scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_sparseseg.balancing import class_shares
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.context import single_shot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.config import Balancing, TrainConfig
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.train.view import TrainPanel

COUNT_MS = 200
"""Delay between the last stroke and the count of labels."""


class TrainActions(QObject):
    """Connects the Train section and the session.

    Attributes
    ----------
    counted
        Signal (LabelStatistics).
    """

    counted = Signal(object)

    def __init__(self, context: Context, panel: TrainPanel) -> None:
        super().__init__(context)
        self._context, self._panel = context, panel
        self.statistics = LabelStatistics.nothing()
        self._counting = self._again = False
        self._scored: Mapping[str, Any] | None = None
        self._failed = ""
        self._agreed: set[str] = set()
        self._timer = single_shot(self, COUNT_MS, self._count)
        panel.train_requested.connect(self.train)
        panel.pause_requested.connect(lambda: context.session.pause())
        panel.resume_requested.connect(lambda: context.session.resume())
        panel.stop_requested.connect(lambda: context.session.stop(wait=False))
        panel.settings.load_requested.connect(self._on_load)
        panel.settings.save_requested.connect(self._on_save)
        context.status_changed.connect(self._on_status)
        context.annotated.connect(self._timer.start)
        context.slides_changed.connect(self._timer.start)
        context.session_replaced.connect(self._on_session)
        panel.show_config(context.session.config)
        panel.show_status(context.session.status)

    def train(self) -> None:
        """Train with the settings of the section; ask before weights are downloaded."""
        session = self._context.session
        try:
            config = self._panel.config(session.config)
        except SparseSegError as error:  # a name of a network that cannot be one
            self._context.report(error)
            return
        model = session.model
        brought = model is not None and model.metadata.encoder == config.encoder
        if not config.downloads or brought or config.encoder in self._agreed:
            self._start(config)
        elif self._context.attempt(session.require_two_classes):
            self._context.in_background(
                lambda: _about(config.encoder), lambda about: self._ask(config, about), name="Looking up the network"
            )

    def _ask(self, config: TrainConfig, about: str) -> None:
        if dialogs.ask_yes(self._panel, "Download a network?", about, "Download"):
            self._agreed.add(config.encoder)
            self._start(config)

    def _start(self, config: TrainConfig) -> None:
        session = self._context.session
        settings = {name: getattr(config, name) for name in ("mpp", "architecture", "encoder", "device", "seed")}
        self._failed = ""

        def start() -> None:
            session.train(config.balancing, seconds=self._panel.settings.seconds, **settings)

        if self._context.attempt(start):
            self._panel.curves.clear()
            count = len(session.slides)
            slides = "one slide" if count == 1 else f"{count} slides"
            self._panel.say(f"Training with {config.balancing} balancing on {slides}")
            self._on_status()

    def stop_timers(self) -> None:
        """Stop counting."""
        self._timer.stop()

    def _on_session(self) -> None:
        self._scored, self._failed = None, ""
        self._panel.curves.clear()
        self._panel.show_config(self._context.session.config)

    def _on_status(self) -> None:
        status = self._context.session.status
        self._panel.show_status(status)
        if status.state == "failed" and status.details != self._failed:
            self._failed = status.details
            self._context.problem.emit(status.message, status.details)
        if status.metrics and status.metrics is not self._scored:
            self._scored = status.metrics
            self._show_scores(status.metrics, status.seconds)

    def _show_scores(self, metrics: Mapping[str, Any], seconds: float) -> None:
        scored = {n: v for n, v in metrics.get("classes", {}).items() if v.get("dice") is not None}
        mean = metrics.get("balanced_dice")
        lines = []
        if mean is not None:
            each = ", ".join(f"{name} {values['dice']:.2f}" for name, values in scored.items())
            lines.append(f"Held-out Dice {mean:.2f}: {each}")
        lines += list(metrics.get("warnings", ()))
        self._panel.show_scores(seconds, {v["id"]: v["dice"] for v in scored.values()}, mean, "\n".join(lines))

    def _count(self) -> None:
        if self._counting:
            self._again = True
            return
        session = self._context.session
        mpp = session.training_mpp
        labels = [(e.annotations.snapshot(), e.slide.frame(mpp)) for e in session.entries if e.role == "train"]
        patch = session.config.patch_px
        self._counting = True
        self._context.jobs.run(lambda: label_statistics(labels, patch), self._on_counted)

    def _on_counted(self, statistics: LabelStatistics) -> None:
        self._counting = False
        self.statistics = statistics
        self._panel.show_statistics(statistics, self._context.session.classes)
        self.counted.emit(statistics)
        if self._again:
            self._again = False
            self._timer.start()

    def _on_load(self) -> None:
        path = dialogs.ask_open(self._panel, "Load model", dialogs.MODELS_TO_OPEN)
        if path:
            session = self._context.session
            self._context.in_background(
                lambda: session.load_model(path),
                lambda _: self._show_encoder(),
                name="Loading the model",
            )

    def load_preset(self, settings: bool) -> None:
        """Ask for a preset, or for a model whose classes are wanted, and use it."""
        title, kinds = ("Load preset", dialogs.PRESETS) if settings else ("Classes of a model", dialogs.MODELS)
        path = dialogs.ask_open(self._panel, title, kinds)
        session = self._context.session
        if path and self._context.attempt(lambda: session.presets.load(path, settings=settings)) and settings:
            self._panel.show_config(session.config)
            self._panel.say(f"Loaded classes and settings of {path}")

    def save_preset(self) -> None:
        """Ask for a name, and write the classes and what is chosen here."""
        session = self._context.session
        path = dialogs.ask_save(self._panel, "Save preset", "preset.json", dialogs.PRESETS)

        def save() -> None:
            session.presets.save(path, config=self._panel.config(session.config), overwrite=True)
            self._panel.say(f"Saved {path}")

        if path:
            self._context.attempt(save)

    def _show_encoder(self) -> None:
        """Select the encoder of a loaded model: with another one, training would start from scratch."""
        config = self._context.session.config
        self._panel.settings.show_config(replace(self._panel.config(config), encoder=config.encoder))

    def _on_save(self) -> None:
        path = dialogs.ask_save(self._panel, "Save model", "model.safetensors", dialogs.MODELS)
        if path:
            session = self._context.session
            self._context.in_background(
                lambda: session.save_model(path, overwrite=True),
                lambda _: self._panel.say(f"Saved {path}"),
                name="Saving the model",
            )


def _about(encoder: str) -> str:
    """The question before weights are fetched: size, licence, and where to read it."""
    from napari_sparseseg.session import encoder_info

    info = encoder_info(encoder)
    link = f", see {info.link}" if info.link else ""
    return (
        f"{info.name}: {info.megabytes:,.0f} MB from {info.source}.\nLicence: {info.licence}{link}.\n"
        f"Cost: {info.cost()}.\n"
        "The weights are downloaded once, unless they are on this computer already."
    )


MOST_PATCHES = 256
"""Patches counted per slide; of more, an evenly spaced sample."""


@dataclass(frozen=True)
class LabelStatistics:
    """Labels of all training slides.

    Parameters
    ----------
    strokes, pixels
        Per class id: strokes drawn, labelled level-0 pixels.
    patches
        int64 (P, 256): labelled pixels of each class in each labelled patch, at the training resolution.
    """

    strokes: dict[int, int]
    pixels: dict[int, int]
    patches: np.ndarray

    @classmethod
    def nothing(cls) -> LabelStatistics:
        """No labels."""
        return cls({}, {}, np.zeros((0, 256), np.int64))

    @property
    def labelled(self) -> tuple[int, ...]:
        """Ids of the classes that have labels."""
        return tuple(sorted(c for c, n in self.pixels.items() if n))

    def pixel_share(self, class_id: int) -> float:
        """Share of all labelled pixels, 0..1."""
        total = sum(self.pixels.values())
        return self.pixels.get(class_id, 0) / total if total else 0.0

    def loss_shares(self, balancing: Balancing) -> dict[int, float]:
        """Expected share of every class in the loss, summing to 1; see `balancing.class_shares`.

        For ``mini-batch`` it is the share in a batch that holds all classes.
        """
        shares = class_shares(self.patches, balancing)
        return {int(c): float(shares[c]) for c in np.flatnonzero(shares)}


def label_statistics(labels: Sequence[tuple[Snapshot, Frame]], patch_px: int) -> LabelStatistics:
    """Count frozen annotations; takes up to a second for thousands of strokes, so call it off the GUI thread.

    Parameters
    ----------
    labels
        Annotations of each training slide with the frame that training sees it in.
    patch_px
        Side of a training patch in pixels of the frame.
    """
    strokes: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    rows = []
    for snapshot, frame in labels:
        strokes.update(s.class_id for s in snapshot.strokes if s.kind != "erase")
        pixels.update(snapshot.counts())
        cells = snapshot.occupied(frame, patch_px)
        for cell in cells[:: -(-len(cells) // MOST_PATCHES) or 1]:
            counts = np.bincount(snapshot.read_region(cell, frame).ravel(), minlength=256)
            counts[0] = 0
            if counts.any():
                rows.append(counts)
    patches = np.stack(rows) if rows else LabelStatistics.nothing().patches
    return LabelStatistics(dict(strokes), dict(pixels), patches)
