"""`Learner`: an answer in a second, a better one in minutes. No thread of its own; all calls come from one thread.

* `refit` fits the instant head to everything labelled, after each stroke.
* `step` does one short piece of work of the fine part: train the U-Net decoder, or compare it with the head on held-out
  strokes. The served model mixes both in the share that did best there; a share of 0, the head alone, is always among
  the candidates, so what is served was not worse than the instant one on what was held out, to within `NOISE`, when
  they were compared. Until the next comparison the decoder served follows the one that is trained; one that was found
  clearly worse gives way to the last good one.

The plain U-Net has no head: what is served is the network that scored best.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_sparseseg.config import class_ids, make_classes
from napari_sparseseg.errors import TrainingError
from napari_sparseseg.learning import replay as memory
from napari_sparseseg.learning.distributed import ranks
from napari_sparseseg.learning.factory import (
    PatchStream,
    fine_part,
    metadata_of,
    network_of,
    new_decoder,
    new_trainer,
    new_unet,
    other_network,
    too_few_classes,
    unfreeze,
)
from napari_sparseseg.learning.feature_cache import CELL
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.fine import DecoderTask
from napari_sparseseg.learning.holdout import MOST_WINDOWS, HeldOut
from napari_sparseseg.learning.instant import InstantLearner
from napari_sparseseg.learning.model import Model, load_model
from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet, with_classes
from napari_sparseseg.learning.pseudo_labels import RELIABLE, PseudoLabels
from napari_sparseseg.learning.scores import Scorer
from napari_sparseseg.learning.torch_runtime import choose_device, import_torch
from napari_sparseseg.learning.validation import Comparison, PlainComparison, Turns, cost_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from napari_sparseseg.config import ClassDef, TrainConfig
    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.sampling import Batch
    from napari_sparseseg.learning.sources import Source
    from napari_sparseseg.learning.trainer import Trainer
    from napari_sparseseg.learning.validation import Contest

ENCODE_SECONDS = 1.5
"""Longest time that `refit` spends on cells not encoded yet; `step` goes on with the rest."""
UNFREEZE_AFTER = 2000
"""Fine steps on frozen maps; after them the decoder gets its own encoder and is trained with it. Not sooner: with 300,
the decoder alone had 0.850 mean Dice after 90 s, frozen 0.879 (EBHI-Seg gland / background, seed 0, 2026-11-23); with
50, what is served after 30 CPU s had -.005 +- .003 of it, on synthetic tissue +.006 +- .016 (three seeds,
`tests.benchmarks.ablation`, 2026-11-30)."""
PUBLISH_STEPS = 40
"""Steps between two models with the newest weights: of a decoder whose last comparison was good, so that what is served
is not as old as that; of the plain U-Net while nothing is held out to choose the best by."""
UNSCORED = "nothing can be held out, so no score tells what training brings; draw a second stroke of each class."


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one `Learner.step` did."""

    step: int
    """Completed fine steps so far."""
    loss: float | None
    """Balanced loss of the last completed step; None before the first."""
    seconds: float
    validation: dict[str, Any] | None = None
    """Held-out scores, when a comparison was completed."""
    message: str = ""
    """For the user: memory ran out, went back after NaN."""


class Learner(InstantLearner):
    """Learns from annotated sources.

    Parameters
    ----------
    config, classes
        Settings of the run; class table, in the order of channels.
    model
        To continue from, with what it remembers of other slides; one of another encoder is left alone, see `note`.
    device
        None: as the config says.

    Attributes
    ----------
    model, model_version, annotation_version
        The best one now, or None; +1 with every new one; the newest annotation version that it was fitted on.
    problem
        Why there is no model, or what is not yet in it; else empty.
    metrics, held, turns
        Held-out scores of the model served, with the classes that cannot be scored; what is held out now; when to
        compare, and how long nothing was gained.

    Raises
    ------
    TrainingError
        When the device is not there.
    """

    def __init__(
        self, config: TrainConfig, classes: Sequence[ClassDef], *, model: Model | None = None, device: str | None = None
    ) -> None:
        import_torch()
        super().__init__(config, make_classes(classes), choose_device(device or config.device))
        self.model: Model | None = None
        self.model_version = self.annotation_version = 0
        self.problem = self._restarted = ""
        self.metrics: dict[str, Any] = {}
        self.held = HeldOut(config.seed, window=CELL)
        self._patches = PatchStream(config, self.held)
        self._fine: Decoder | PlainUNet | None = None
        self._trainer: Trainer | None = None
        self._comparison: Contest | None = None
        self._pseudo: PseudoLabels | None = None
        self._accepted: Decoder | PlainUNet | None = None
        self._loss: float | None = None
        self._first_step, self._share = 0, 0.0
        self.turns, self._augmented, self._refit_due, self._behind = Turns(), False, False, False
        if model is not None:
            self._continue(model)

    @property
    def step_count(self) -> int:
        """Completed fine steps, those of a model continued from included."""
        return self._first_step + (self._trainer.steps if self._trainer is not None else 0)

    @property
    def note(self) -> str:
        """For the user: why there is no model or what is not in it, that it began anew, that it cannot be scored."""
        unscored = "" if self.problem or self.held.exclude or not self._sources else UNSCORED
        return " ".join(text for text in (self.problem, self._restarted, unscored) if text)

    def set_classes(self, classes: Sequence[ClassDef]) -> None:
        """Change the class table; what was learned of the classes that stay is kept."""
        old, self.classes = class_ids(self.classes), make_classes(classes)
        if old == (new := class_ids(self.classes)):
            return
        if self._trainer is not None:
            self._first_step += self._trainer.steps
            self._fine, self._trainer = fine_part(self._trainer.averaged), None
        if self._fine is not None:
            self._fine = with_classes(self._fine, old, new)
        self._comparison = self._pseudo = self._accepted = None

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Take new snapshots of the annotations; cheap: `refit` and `step` do the work."""
        self._sources = tuple(sources)
        recalled = self.held.update(self._sources, self.classes)
        self._patches.restart(self._sources)
        self._comparison = None
        if self._pseudo is not None:
            self._pseudo.forget()
        self.turns.restart()
        if self._trainer is not None:
            self._trainer.drop_batch()
        lost = self._bank is not None and self._bank.set_sources(self._training)
        if lost or recalled:
            self._augmented_rows.clear()

    def refit(self) -> Model | None:
        """Fit the instant head to everything labelled; the new best model, or None with `problem` set."""
        self._refit_due = False
        self.problem = too_few_classes(self.classes, self._training, self._memory)
        if self.problem:
            return None
        self._scale = self._scale or InputScale.of(self._training)
        if self.config.architecture == "scratch":
            channels = len(self._training[0].slide.channels)
            self._fine = self._fine or new_unet(self.config, channels, len(self.classes), self.device)
        else:
            if self._ensure_bank().encode(ENCODE_SECONDS):
                self.problem = f"{self.pending} labelled places are still to be looked at."
            self._head = self._fit_head(self._augmented_rows if self._augmented else ())
        if not self.metrics.get("pixels"):  # no comparison yet: at least what keeps classes from being scored
            self.metrics = self.held.scores(Scorer(self.classes)).to_json() if self.held.warnings else {}
        return self._publish()

    def step(self) -> StepReport:
        """One short piece of fine learning: part of a batch, or of a comparison on held-out strokes.

        Raises
        ------
        TrainingError
            Before `refit`, when nothing labelled is left, or when it cannot go on (memory, NaN).
        """
        if self._scale is None:
            raise TrainingError("nothing was fitted yet; call set_sources() and refit() before step().")
        started = time.perf_counter()
        validation, message = None, ""
        if self._bank is not None and self._bank.pending:
            if not self._bank.encode(0.3):
                self.refit()
        elif self._comparison is not None:
            if self._comparison.advance():
                validation = self._take_over(self._comparison)
        elif self._refit_due:
            self.refit()
        else:
            self._trainer = self._trainer or self._begin(self._scale)
            loss, message = self._trainer.work(self._draw), self._trainer.message
            if loss is not None:
                self._loss = loss
                self._after_step(self._trainer)
        return StepReport(self.step_count, self._loss, time.perf_counter() - started, validation, message)

    def rest(self) -> None:
        """End the thread that reads ahead; the next `step` starts it again."""
        self._patches.rest()

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the model served with what is needed to go on, for `resume`.

        Raises
        ------
        ModelError, TrainingError
            When it cannot be written; when there is no model yet.
        """
        if self.model is None:
            raise TrainingError("there is no model to save yet; scribble two classes first.")
        if self._trainer is not None:
            if self._follows:
                self._fine = copy.deepcopy(fine_part(self._trainer.averaged))
            self._publish()
        self.model.save(path)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, device: str | None = None) -> Learner:
        """A learner that goes on where a checkpoint ended; only the optimizer's moments begin anew."""
        model = load_model(path, device or "auto")
        return cls(model.metadata.config, model.metadata.classes, model=model, device=device)

    def _continue(self, model: Model) -> None:
        """Take over what a model brings, where it is of the network asked for."""
        net = model.net
        self._restarted = other_network(model, self.config)
        if self._restarted:
            return
        self.model, self._scale, self._memory = model, model.scale, model.memory
        self._first_step = model.metadata.step
        if isinstance(net, TwoSpeedNet):
            self._features, self._share = net.features.to(self.device), net.share
        if (fine := net if isinstance(net, PlainUNet) else net.decoder) is not None:
            self._fine = with_classes(fine, class_ids(model.metadata.classes), class_ids(self.classes))

    @property
    def _augmented_rows(self) -> list[LabelledFeatures]:
        """Rows of augmented patches, of all that was trained on since they were cleared."""
        task = self._trainer.task if self._trainer is not None else None
        return task.rows if isinstance(task, DecoderTask) else []

    def _begin(self, scale: InputScale) -> Trainer:
        fine = self._fine or new_decoder(self.config, self._ensure_bank().features, len(self.classes), self._rows)
        return new_trainer(fine, self._features, self.classes, self.config, scale, self.device)

    @property
    def _follows(self) -> bool:
        """Whether the newest weights take the place of those served, or are kept beside a head that serves alone."""
        if isinstance(self._fine, PlainUNet):
            return not self._share
        return not self._behind

    def _draw(self, n: int) -> Batch:
        """The next patches, with pseudo-labels of the averaged decoder where there is one."""
        batch = self._patches.draw(n)
        if self._trainer is None or not isinstance(self._trainer.averaged, Decoder):
            return batch
        self._pseudo = self._pseudo or PseudoLabels(self._ensure_bank(), class_ids(self.classes))
        return self._pseudo.fill(batch, self._sources, self._trainer.averaged)

    def _after_step(self, trainer: Trainer) -> None:
        averaged = fine_part(trainer.averaged)
        if ranks().first and self.turns.due(self.step_count):
            self._compare(averaged)
        if trainer.steps % PUBLISH_STEPS == 0 and self._follows and (self._share or isinstance(averaged, PlainUNet)):
            self._fine = copy.deepcopy(averaged)
            self._publish()
        if isinstance(averaged, Decoder) and averaged.tuned is None and self.step_count >= UNFREEZE_AFTER:
            self._first_step += trainer.steps
            self._trainer = unfreeze(trainer, self._ensure_bank(), self.classes, self.config, self.device)

    def _compare(self, averaged: Decoder | PlainUNet) -> None:
        """Begin a comparison, if anything is held out."""
        windows, fine = self.held.windows(), copy.deepcopy(averaged)
        if not windows or self._scale is None:
            self.turns.skipped(self.step_count, cost_of(MOST_WINDOWS, self.config))
            return
        self.turns.begun(self.step_count, cost_of(len(windows), self.config))
        if isinstance(fine, PlainUNet):
            served = [self._fine] if isinstance(self._fine, PlainUNet) and self._share and self.turns.fresh else []
            self._comparison = PlainComparison(self.held, self._sources, self.classes, self._scale, [fine, *served])
        else:
            given = (fine, (self.classes, self.config), (self._remembered, self._augmented_rows), self._share)
            self._comparison = Comparison(self._ensure_bank(), self.held, self._sources, *given)

    def _take_over(self, comparison: Contest) -> dict[str, Any]:
        """Serve what scored best from the next step on: the head is fitted to everything then, which takes a while."""
        self._comparison = None
        if self._pseudo is not None and not self.held.seen:  # what was trained on before a swap bears nothing out
            self._pseudo.trusted = comparison.reliable >= RELIABLE
        self._behind = not self.turns.keeps_up(comparison.metrics["balanced_dice"])
        if not self._behind:
            self._refit_due = True
            self._share, self._accepted, self.metrics = comparison.best_share, comparison.fine, comparison.metrics
            self._augmented = comparison.augmented
        # What is clearly worse than before goes back to what was compared last and was good.
        self._fine = self._accepted or self._fine
        if self.turns.swap() and ranks().world == 1:
            if self.held.swap():
                self._augmented_rows.clear()
            self._patches.restart(self._sources)
        return comparison.metrics

    def _publish(self) -> Model | None:
        net = network_of(self._features, self._head, copy.deepcopy(self._fine), self._share)
        if net is None or self._scale is None:
            return None
        kept = () if isinstance(net, PlainUNet) else memory.chosen([*self._rows, *self._remembered])
        metadata = metadata_of(self._sources, self.classes, self.config, self.metrics, self.step_count)
        self.model = Model(metadata, net.to(self.device), self._scale, kept)
        self.model_version += 1
        self.annotation_version = max((s.labels.version for s in self._sources), default=0)
        return self.model
