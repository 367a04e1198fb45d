"""The defaults of training, each against its neighbours: resolution, patch, batch, schedule, augmentation, dense share.

    python -m tests.benchmarks.ablation            # an hour on one core; interrupted, it goes on where it was

Every variant changes one setting and gets the same CPU seconds of training on one thread, for seconds are what a user
pays. Labels are sparse plus a tenth dense. Seeds are 3 to 5: the study, the learner's benchmark and the peers count
from 0, so no default is chosen by the pictures that it is judged on. Variants are compared with the default seed by
seed. The resolution of EBHI-Seg is not known: 1 um is its own pixel, and finer would be empty magnification.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.learning import learner as learning
from napari_sparseseg.learning import trainer
from napari_sparseseg.learning.augment import Augmentation
from tests.benchmarks import common, study_balancing

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, Any]
TASKS = ("ebhi 2", "synthetic 10")
DEFAULT = "default"
STRONG = {"rotation": 1.0, "scale": 0.4, "stain": 0.2, "brightness": 0.2, "blur": 0.3, "noise": 0.3, "jpeg": 0.3}
NONE = {"flips": False} | dict.fromkeys(STRONG, 0.0)
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "mpp 0.5": {"mpp": 0.5},
    "mpp 2": {"mpp": 2.0},
    "patch 128": {"patch_px": 128},
    "patch 256": {"patch_px": 256},
    "batch 2": {"batch_size": 2},
    "batch 8": {"batch_size": 8},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "end to end after 50 steps": {"UNFREEZE_AFTER": 50},
    "no augmentation": {"augmentation": NONE},
    "twice as strong": {"augmentation": STRONG},
    "half of patches dense": {"dense_fraction": 0.5},
}
"""Fields of `TrainConfig`, but ``augmentation`` (fields of `Augmentation`) and the learner's ``UNFREEZE_AFTER``."""


def grid(seeds: Sequence[int], seconds: float) -> list[Row]:
    """Settings of all rows; nothing finer than EBHI-Seg's own pixels."""
    return [
        {"task": task, "variant": variant, "seed": seed, "seconds": seconds}
        for seed in seeds
        for task in TASKS
        for variant, changes in VARIANTS.items()
        if task.startswith("synthetic") or changes.get("mpp", 1.0) >= 1
    ]


def perform(task: str, variant: str, seed: int, seconds: float) -> Row:
    """Train for so many CPU seconds and score what is then served."""
    changes = dict(VARIANTS[variant])
    # Settings that are the learner's own, not a user's, are changed in this process, which does nothing else.
    trainer.Augmentation = partial(Augmentation, **changes.pop("augmentation", {}))  # type: ignore[misc,assignment]
    learning.UNFREEZE_AFTER = changes.pop("UNFREEZE_AFTER", learning.UNFREEZE_AFTER)
    given = study_balancing.task_for(task, seed)
    config = TrainConfig(**{"mpp": 1.0, "device": "cpu", "seed": seed, **changes})
    labels = study_balancing.labelled(given, "sparse+10", seed)
    learner = common.learner_for(given, labels, config)
    clock = common.Clock()
    learner.refit()
    while clock() < seconds:
        learner.step()
    dice = common.model_scores(given, learner.model)
    row = {"task": task, "variant": variant, "seed": seed, "seconds": seconds, "steps": learner.step_count}
    return {**row, "mean": dice["mean"], "rare": dice["rare"]}


def publish(rows: Sequence[Row]) -> None:
    """A table and a picture: the default's Dice, and what each change adds to it."""
    known = {(r["task"], r["variant"], r["seed"]): r for r in rows}
    lines, gains = [], {}
    for variant in VARIANTS:
        line = [variant]
        for task in TASKS:
            own = [r for r in rows if (r["task"], r["variant"]) == (task, variant)]
            other = [known.get((task, DEFAULT, r["seed"])) for r in own]
            d = [r["mean"] - o["mean"] for r, o in zip(own, other, strict=True) if o]
            gains[variant, task] = d
            rare = [r["rare"] - o["rare"] for r, o in zip(own, other, strict=True) if o]
            values = ([r["mean"] for r in own], [r["rare"] for r in own]) if variant == DEFAULT else (d, rare)
            line += [_shown(v, variant != DEFAULT) for v in values]
            line.append(f"{np.mean([r['steps'] for r in own]):.0f}" if own else "")
        lines.append(line)
    header = ["variant", *(f"{t}: {k}" for t in TASKS for k in ("mean Dice", "rare class", "steps"))]
    seconds = ", ".join(sorted({f"{r['seconds']:g}" for r in rows}))
    text = f"# Defaults and their neighbours, after {seconds} CPU s; others than the default: difference, seed by seed"
    common.report("ablation", f"{text}\n\n{common.markdown(header, lines)}", list(rows))
    axes, save = common.figure("ablation", len(TASKS))
    for axis, task in zip(axes, TASKS, strict=True):
        for k, variant in enumerate(reversed(VARIANTS)):
            values = gains[variant, task]
            axis.plot(values, [k] * len(values), "o", color="#0072b2", ms=4, alpha=0.7)
        axis.axvline(0, color="#666666", lw=0.8)
        axis.set(title=task, xlabel="mean Dice less that of the default")
        axis.set_yticks(range(len(VARIANTS)), list(reversed(VARIANTS)), fontsize=7)
    save()


def _shown(values: Sequence[float], signed: bool) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):{'+' if signed else ''}.3f}{spread}"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", help="settings of one row, as JSON; prints it")
    given = parser.parse_args(argv)
    if given.one:
        common.torch.set_num_threads(1)
        print(json.dumps(perform(**json.loads(given.one))))
        return []
    settings = grid(given.seeds, given.seconds)
    rows = common.rows_of("tests.benchmarks.ablation", settings, common.RESULTS / "ablation.jsonl", given.workers)
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
