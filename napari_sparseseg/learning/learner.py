"""`Learner`: an answer in a second, a better one in minutes. It has no thread; all calls come from one thread.

* `refit` fits the instant head to everything labelled, after each stroke.
* `step` does one short piece of work of the fine part: train the U-Net decoder, or compare it with the head on held-out
  strokes. The model served mixes both in the share that scored best there. A share of 0, the head alone, is always
  among the candidates, so when they were compared the mixture was at most `ValidationSettings.noise` below the head.
  Until the next comparison the decoder served follows the one in training; a decoder that turns out clearly worse is
  replaced by the last good one.

The plain U-Net has no head: the network that scored best is served.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import class_ids, make_classes
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning import replay
from napari_sparseseg.learning.distributed import ranks
from napari_sparseseg.learning.feature_cache import CELL, CacheSettings, FeatureCache, join
from napari_sparseseg.learning.features import InputScale, new_features
from napari_sparseseg.learning.head import fit_head, mean_of
from napari_sparseseg.learning.holdout import MOST_WINDOWS, HeldOut
from napari_sparseseg.learning.model import Model
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet, new_decoder, new_unet, with_classes
from napari_sparseseg.learning.pseudo_labels import PseudoLabels, PseudoLabelSettings
from napari_sparseseg.learning.sampling import PatchStream
from napari_sparseseg.learning.stains import TrainedTissue
from napari_sparseseg.learning.torch_runtime import choose_device, import_torch
from napari_sparseseg.learning.trainer import MOST_AUGMENTED, DecoderTask, new_trainer, unfreeze
from napari_sparseseg.learning.validation import (
    Comparison,
    PlainComparison,
    ValidationSchedule,
    ValidationSettings,
    cost_of,
)
from napari_sparseseg.metrics import Scorer

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.features import FeatureMaps
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.sampling import Batch
    from napari_sparseseg.learning.sources import Source
    from napari_sparseseg.learning.trainer import Trainer

logger = logging.getLogger(__name__)

UNSCORED = "nothing can be held out, so no score tells what training brings; draw a second stroke of each class."


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Settings of the learner that no user has to know; those of a run are in `TrainConfig`."""

    encode_seconds: float = 1.5
    """Longest time that `refit` spends on new cells; `step` encodes the others."""
    unfreeze_after: int = 2000
    """Fine steps on frozen maps, after which the decoder gets an encoder of its own. See D2."""
    publish_steps: int = 40
    """Steps between two models with the newest weights: of a decoder whose last comparison was good, or of the plain
    U-Net while nothing is held out to choose the best by."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    pseudo: PseudoLabelSettings = field(default_factory=PseudoLabelSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The outcome of one `Learner.step`."""

    step: int
    """Completed fine steps so far."""
    loss: float | None
    """Balanced loss of the last completed step; None before the first."""
    seconds: float
    validation: dict[str, Any] | None = None
    """Held-out scores, when a comparison was completed."""
    message: str = ""
    """For the user: memory ran out, went back after NaN."""


class Learner:
    """Learns from annotated sources.

    Parameters
    ----------
    config, classes
        Settings of the run; class table, in channel order.
    model
        To continue from, with its features of other slides; ignored, with a `note`, where its encoder is another.
    device
        None: as the config says.
    settings
        Of validation, pseudo-labels and caches.

    Attributes
    ----------
    model, model_version, annotation_version
        The best model now, or None; +1 with every new one; the newest annotation version that it was fitted on.
    problem
        Why there is no model, or what it lacks; else empty.
    metrics, held, schedule
        Held-out scores of the model served, with the classes that cannot be scored; what is held out now; when to
        compare, and how long nothing was gained.
    sources, patches, cache, trainer
        The labelled slides, the training patches of them, their features, and the training loop; the last two are None
        until they are needed.

    Raises
    ------
    TrainingError
        When the device is not available.
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: Sequence[ClassDef],
        *,
        model: Model | None = None,
        device: str | None = None,
        settings: LearnerSettings | None = None,
    ) -> None:
        import_torch()
        self.config, self.classes = config, make_classes(classes)
        self.device = choose_device(device or config.device)
        self.settings = settings or LearnerSettings()
        self.model: Model | None = None
        self.model_version = self.annotation_version = 0
        self.problem = self._restarted = ""
        self.metrics: dict[str, Any] = {}
        self.sources: tuple[Source, ...] = ()
        self.held = HeldOut(config.seed, window=CELL)
        self.schedule = ValidationSchedule(self.settings.validation)
        self.patches = PatchStream(config, self.held)
        self.cache: FeatureCache | None = None
        self.trainer: Trainer | None = None
        self._scale: InputScale | None = None
        self._features: FeatureMaps | None = None
        self._rows: list[LabelledFeatures] = []
        self._older_rows: list[LabelledFeatures] = []
        self._memory: tuple[LabelledFeatures, ...] = ()
        self._head: Head | None = None
        self._fine: Decoder | PlainUNet | None = None
        self._accepted: Decoder | PlainUNet | None = None
        self._comparison: Comparison | PlainComparison | None = None
        self._pseudo: PseudoLabels | None = None
        self._tissue = TrainedTissue(() if model is None else model.metadata.tissue)
        self._loss: float | None = None
        self._first_step, self._share, self._temperature = 0, 0.0, 1.0
        self._augmented, self._refit_due, self._behind = False, False, False
        if model is not None:
            self._continue(model)

    @property
    def step_count(self) -> int:
        """Completed fine steps, including those of the model it continues from."""
        return self._first_step + (self.trainer.steps if self.trainer is not None else 0)

    @property
    def pending(self) -> int:
        """Labelled cells that the instant head has not seen yet."""
        return self.cache.pending if self.cache is not None else 0

    @property
    def note(self) -> str:
        """For the user: why there is no model or what it lacks, that it started anew, that it cannot be scored."""
        unscored = "" if self.problem or self.held.exclude or not self.sources else UNSCORED
        return " ".join(text for text in (self.problem, self._restarted, unscored) if text)

    def reconfigure(self, config: TrainConfig) -> bool:
        """Continue with other settings: the cached features stay, the fine part continues from the model served.

        Returns
        -------
        False where the settings ask for another network, device or seed: then make another learner.
        """
        if any(getattr(config, n) != getattr(self.config, n) for n in ("architecture", "encoder", "device", "seed")):
            return False
        if config == self.config:
            return True
        self.stop_reading()
        self.config, self.patches = config, PatchStream(config, self.held)
        self.patches.restart(self.sources)
        self.schedule = ValidationSchedule(self.settings.validation)
        self.trainer = self._comparison = self._pseudo = self._accepted = None
        self._augmented, self._refit_due, self._behind = False, False, False
        if self.model is not None:
            self._continue(self.model)
        return True

    def set_classes(self, classes: Sequence[ClassDef]) -> None:
        """Change the class table; what was learned of the classes that stay is retained."""
        old, self.classes = class_ids(self.classes), make_classes(classes)
        if old == (new := class_ids(self.classes)):
            return
        if self.trainer is not None:
            self._first_step += self.trainer.steps
            self._fine, self.trainer = self.trainer.averaged, None
        if self._fine is not None:
            self._fine = with_classes(self._fine, old, new)
        self._comparison = self._pseudo = self._accepted = None

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Take new snapshots of the annotations; cheap: `refit` and `step` do the work."""
        self.sources = tuple(sources)
        recalled = self.held.update(self.sources, self.classes)
        self.patches.restart(self.sources)
        self._comparison = None
        if self._pseudo is not None:
            self._pseudo.forget()
        self.schedule.restart()
        if self.trainer is not None:
            self.trainer.drop_batch()
        lost = self.cache is not None and self.cache.set_sources(self._training)
        if lost:
            self._older_rows = []
            self._augmented_rows.clear()
        elif recalled:
            self._retire_rows()

    def refit(self) -> Model | None:
        """Fit the instant head to everything labelled; the new best model, or None with `problem` set."""
        self._refit_due = False
        self.problem = too_few_classes(self.classes, self._training, self._memory)
        if self.problem:
            return None
        self._scale = self._scale or InputScale.of(self._training)
        if self.config.architecture == "scratch":
            channels = len(self._training[0].slide.channels)
            self._fine = self._fine or new_unet(self.config.seed, channels, len(self.classes)).to(self.device)
        else:
            if self._ensure_cache().encode(self.settings.encode_seconds):
                self.problem = f"{self.pending} labelled places are not encoded yet."
            self._head = self._fit_head()
        if not self.metrics.get("pixels"):  # no comparison yet: at least the reasons why classes cannot be scored
            self.metrics = self.held.scores(Scorer(self.classes)).to_json() if self.held.warnings else {}
        return self._publish()

    def step(self) -> StepReport:
        """Do one short piece of fine learning: encode, compare on held-out strokes, refit, or train part of a batch.

        Raises
        ------
        TrainingError
            Before `refit`, when nothing labelled is left, or when training cannot continue (memory, NaN).
        """
        if self._scale is None:
            raise TrainingError("nothing was fitted yet; call set_sources() and refit() before step().")
        started = time.perf_counter()
        validation, message = None, ""
        if self.cache is not None and self.cache.pending:
            if not self.cache.encode(0.3):
                self.refit()
        elif self._tissue.look(self._training):
            pass
        elif self._comparison is not None:
            if self._comparison.advance():
                validation = self._take_over(self._comparison)
        elif self._refit_due:
            self.refit()
        else:
            self.trainer = self.trainer or self._new_trainer(self._scale)
            loss, message = self.trainer.work(self._draw), self.trainer.message
            if loss is not None:
                self._loss = loss
                self._after_step(self.trainer)
        return StepReport(self.step_count, self._loss, time.perf_counter() - started, validation, message)

    def stop_reading(self) -> None:
        """End the thread that reads ahead; the next `step` starts it again."""
        self.patches.close()

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the model served; a learner made from it continues, only the optimizer's moments start anew.

        Raises
        ------
        ModelError, TrainingError
            When it cannot be written; when there is no model yet.
        """
        if self.model is None:
            raise TrainingError("there is no model to save yet; scribble two classes first.")
        if self.trainer is not None:
            if self._follows:
                self._fine = copy.deepcopy(self.trainer.averaged)
            self._publish()
        self.model.save(path)

    # --- the instant head ---

    @property
    def _training(self) -> list[Source]:
        return [s for s in self.sources if s.role == "train"]

    @property
    def _remembered(self) -> tuple[LabelledFeatures, ...]:
        """Features of slides that are not open; labels of an open one replace them as soon as all are encoded."""
        return replay.without_slides(self._memory, set() if self.pending else self._open)

    @property
    def _open(self) -> set[str]:
        return {s.slide.fingerprint for s in self.sources}

    @property
    def _augmented_rows(self) -> list[LabelledFeatures]:
        """Features of augmented patches, of all that was trained on since they were cleared."""
        task = self.trainer.task if self.trainer is not None else None
        return task.rows if isinstance(task, DecoderTask) else []

    def _retire_rows(self) -> None:
        """Others are held out now: what came before is for the head that is served, not for those that are compared."""
        self._older_rows = [*self._older_rows, *self._augmented_rows][-MOST_AUGMENTED:]
        self._augmented_rows.clear()

    def _ensure_cache(self) -> FeatureCache:
        if self.cache is None:
            scale = self._scale or InputScale.of(self._training)
            self._features = self._features or new_features(self.config.encoder, len(scale.low), self.device)
            self.cache = FeatureCache(self._features, scale, self.settings.cache)
            self.cache.set_sources(self._training)
        return self.cache

    def _fit_head(self) -> Head:
        cache, ids = self._ensure_cache(), class_ids(self.classes)
        self._rows = cache.rows()
        logger.info("refit to %d cells, %d patches remembered", len(self._rows), len(self._remembered))
        augmented = [*self._older_rows, *self._augmented_rows][-MOST_AUGMENTED:] if self._augmented else ()
        heads, seed = [], self.config.seed
        for further in ((), augmented) if augmented else ((),):
            samples = join([*self._rows, *self._remembered, *further], ids, self.config)
            heads.append(fit_head(samples, cache.features.channels, len(ids), seed=seed, device=self.device))
        return mean_of(heads)

    # --- the fine part ---

    def _continue(self, model: Model) -> None:
        """Take over a model, where it has the network asked for."""
        net = model.net
        self._restarted = other_network(model, self.config)
        if self._restarted:
            return
        self.model, self._scale, self._memory = model, model.scale, model.memory
        self._first_step = model.metadata.step
        if isinstance(net, TwoSpeedNet):
            self._features, self._share = self._features or net.features.to(self.device), net.share
            self._temperature = net.temperature
        if (fine := net if isinstance(net, PlainUNet) else net.decoder) is not None:
            self._fine = with_classes(fine, class_ids(model.metadata.classes), class_ids(self.classes))

    def _new_trainer(self, scale: InputScale) -> Trainer:
        fine = self._fine
        if fine is None:
            rows = [r.features for r in self._rows]
            fine = new_decoder(self.config.seed, self._ensure_cache().features, len(self.classes), rows)
        return new_trainer(fine, self._features, self.classes, self.config, scale, self.device)

    @property
    def _follows(self) -> bool:
        """Whether the newest weights replace those served (or those stored beside a head that is served alone)."""
        if isinstance(self._fine, PlainUNet):
            return not self._share
        return not self._behind

    def _draw(self, n: int) -> Batch:
        """The next patches, with pseudo-labels of the averaged decoder where there is one."""
        batch = self.patches.draw(n)
        if self.trainer is None or not isinstance(self.trainer.averaged, Decoder):
            return batch
        ids = class_ids(self.classes)
        self._pseudo = self._pseudo or PseudoLabels(self._ensure_cache(), ids, self.settings.pseudo)
        return self._pseudo.fill(batch, self.sources, self.trainer.averaged)

    def _after_step(self, trainer: Trainer) -> None:
        averaged = trainer.averaged
        if ranks().first and self.schedule.is_due(self.step_count):
            self._compare(averaged)
        serves = self._follows and (self._share or isinstance(averaged, PlainUNet))
        if trainer.steps % self.settings.publish_steps == 0 and serves:
            self._fine = copy.deepcopy(averaged)
            self._publish()
        frozen = isinstance(averaged, Decoder) and averaged.tuned is None
        features = self._ensure_cache().features if frozen else None
        if features is not None and features.encoder.tunable and self.step_count >= self.settings.unfreeze_after:
            self._first_step += trainer.steps
            self.trainer = unfreeze(trainer, features, self.classes, self.config, self.device)

    def _compare(self, averaged: Decoder | PlainUNet) -> None:
        """Begin a comparison, if anything is held out."""
        windows, fine, settings = self.held.windows(), copy.deepcopy(averaged), self.settings.validation
        if not windows or self._scale is None:
            self.schedule.skip(self.step_count, cost_of(MOST_WINDOWS, self.config))
            return
        self.schedule.begin(self.step_count, cost_of(len(windows), self.config))
        if isinstance(fine, PlainUNet):
            served = [self._fine] if isinstance(self._fine, PlainUNet) and self._share and self.schedule.fresh else []
            self._comparison = PlainComparison(self.held, self._scale, [fine, *served], settings)
        else:
            further = self._remembered, self._augmented_rows
            self._comparison = Comparison(
                self._ensure_cache(), self.held, self.config, fine, further, self._share, settings, self.step_count
            )

    def _take_over(self, comparison: Comparison | PlainComparison) -> dict[str, Any]:
        """Serve the winner from the next step on: fitting the head to everything takes a while."""
        self._comparison = None
        if self._pseudo is not None and not self.held.seen:  # strokes trained on before a swap prove nothing
            self._pseudo.trusted = comparison.reliable >= self.settings.pseudo.reliable
        self._behind = not self.schedule.accepts(comparison.metrics["balanced_dice"], comparison.places)
        if not self._behind:
            self._refit_due = True
            self._share, self._accepted, self.metrics = comparison.best_share, comparison.fine, comparison.metrics
            self._augmented, self._temperature = comparison.augmented, comparison.calibration.temperature
        # A decoder clearly worse than before is replaced by the last one that was compared and was good.
        self._fine = self._accepted or self._fine
        logger.debug("compared after step %d: %s", self.step_count, comparison.metrics.get("balanced_dice"))
        # Strokes that nothing predicts better than by chance are odd ones: learn from them and hold out others.
        due = self.schedule.finish(at_once=not comparison.informative)
        if due and ranks().world == 1:
            if self.held.swap():
                self._retire_rows()
            self.patches.restart(self.sources)
        return comparison.metrics

    def _publish(self) -> Model | None:
        """Serve the present parts as a model; None while there are too few of them."""
        net: TwoSpeedNet | PlainUNet
        fine = copy.deepcopy(self._fine)
        if self._scale is None:
            return None
        if isinstance(fine, PlainUNet):
            net = fine
        elif self._features is None or self._head is None:
            return None
        else:
            net = TwoSpeedNet(self._features, self._head, fine, self._share, self._temperature)
        memory = () if isinstance(net, PlainUNet) else replay.chosen([*self._rows, *self._remembered])
        metadata = ModelMetadata.of(self.sources, self.classes, self.config, self.metrics, self.step_count)
        metadata = replace(metadata, tissue=self._tissue.chosen())
        self.model = Model(metadata, net.to(self.device), self._scale, memory)
        self.model_version += 1
        self.annotation_version = max((s.labels.version for s in self.sources), default=0)
        return self.model


def too_few_classes(
    classes: Sequence[ClassDef], sources: Sequence[Source], remembered: Sequence[LabelledFeatures]
) -> str:
    """For the user: what is missing to tell two classes apart; empty when nothing is."""
    drawn = {c for s in sources for c, n in s.labels.counts().items() if n}
    known = drawn | {c for rows in remembered for c in set(rows.labels.tolist())}
    found = [c.name for c in classes if c.id in known]
    if drawn and len(found) >= 2:
        return ""
    return f"strokes of at least two classes are needed to learn; labelled so far: {', '.join(found) or 'none'}."


def other_network(model: Model, config: TrainConfig) -> str:
    """For the user: why training by these settings cannot continue from a model; empty where it can."""
    scratch = config.architecture == "scratch"
    asked = "the plain U-Net" if scratch else f"encoder {config.encoder}"
    theirs = "the plain U-Net" if isinstance(model.net, PlainUNet) else f"encoder {model.metadata.encoder}"
    if asked == theirs:
        return ""
    return f"the previous model has {theirs}; learning starts anew with {asked}."
