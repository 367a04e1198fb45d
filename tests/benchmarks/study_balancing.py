"""Does balancing the loss help? Labels x balancing x network.

{sparse, dense, sparse + 5 / 10 / 25 % dense} x {none, instance, mini-batch} x {scratch, pretrained}: the experiment of
Bokhorst et al. (MIDL 2019) with our learner, on synthetic tissue of several class imbalances and on EBHI-Seg split by
case. ``python -m tests.benchmarks.study`` runs it and attacks it.

Every run gets the same number of steps: what a step costs depends on labels and machine, and an earlier study that
gave all the same eight seconds had compared little but the first fitted heads. Three models of each run are scored:
the first head (``instant``), the model served after the last step (``found``), and the network of the last step alone
(``network``), which is what the paper trains and we do not serve. Runs with one seed share pictures, strokes and dense
squares, so balancing schemes are compared pair by pair. Finished runs are kept in ``balancing-steps.jsonl``; an
interrupted study goes on where it was.

What might fool us, and what is done about it: cases are never in both halves; the rare class of the synthetic pictures
is another one with each seed; bare glass is not in the mean; strokes are given out by area, so that scribbles are as
lopsided as the tissue (an annotator who gives each class the same strokes has balanced by hand); nothing is chosen by
the test pictures: the learner decides by its own held-out strokes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_sparseseg.config import TrainConfig
from napari_sparseseg.learning.model import Model
from napari_sparseseg.learning.network import TwoSpeedNet
from tests.benchmarks import common

if TYPE_CHECKING:
    from napari_sparseseg.learning.learner import Learner

LABELS = ("sparse", "sparse+5", "sparse+10", "sparse+10 rare", "sparse+25", "dense")
"""`rare`: of the squares at least one holds the rare class, as somebody who looks for it would choose."""
BALANCINGS = ("none", "instance", "mini-batch")
FEWER = ("sparse", "sparse+10", "dense")
RARE, MORE = "sparse+10 rare", ("sparse+15", "sparse+25")
TASKS = ("synthetic 1", "synthetic 10", "synthetic 100", "ebhi 2")
TITLES = {
    "synthetic 1": "classes alike", "synthetic 10": "rare class 1:10", "synthetic 100": "rare class 1:100",
    "ebhi 2": "EBHI-Seg, gland / background",
}  # fmt: skip
STEPS = {"pretrained": 80, "scratch": 240}
OF_ALL = ("mean", "rare", "rare precision", "rare recall")
"""Columns of `common.scores` that are no class."""


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    labels: str
    balancing: str
    architecture: str
    seed: int
    steps: int


def grid(name: str, seeds: int) -> list[Run]:
    """Runs of a grid.

    ``full``: every task, amount of labels, balancing and network; ``quick``: no shares but 10 %, and the plain U-Net on
    EBHI-Seg only; ``smoke``: that it runs.
    """
    if name == "smoke":
        return [Run("synthetic 10", "sparse+10", b, a, 0, 20) for b in BALANCINGS[:2] for a in STEPS]
    cells = [(a, t, label) for a in STEPS for t in TASKS for label in LABELS if label != RARE]
    if name == "quick":
        cells = [c for c in cells if c[2] in FEWER and (c[0] == "pretrained" or c[1] == "ebhi 2")]
    return [Run(t, x, b, a, s, STEPS[a]) for s, (a, t, x), b in itertools.product(range(seeds), cells, BALANCINGS)]


def again(seeds: int) -> dict[str, list[Run]]:
    """The most lopsided task once more, by name of the attack: more seeds, more steps, other dense squares."""
    few = [x for x in FEWER if x != "sparse"]
    more = [Run(TASKS[2], x, b, "pretrained", s, 80) for s in range(2 * seeds) for x in few for b in BALANCINGS]
    longer = [Run(TASKS[2], x, "instance", "pretrained", s, 240) for s in range(2 * seeds) for x in few]
    other = [Run(TASKS[2], x, "instance", "pretrained", s, 80) for s in range(4 * seeds) for x in (*few, RARE, *MORE)]
    return {f"{2 * seeds} seeds": more, f"{2 * seeds} seeds, 240 steps": longer, f"{4 * seeds} seeds": other}


def task_for(name: str, seed: int) -> common.Task:
    """The task of a run; every seed has its own pictures or its own split."""
    kind, number = name.split()
    return common.synthetic(float(number), seed) if kind == "synthetic" else common.ebhi(int(number), seed)


def labelled(task: common.Task, labels: str, seed: int):
    """Annotations of the training pictures; with one seed, more dense squares include the fewer."""
    rng_strokes, rng_dense = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    out = common.sparse(task, rng_strokes)
    if labels == "dense":
        common.add_dense(task, out, 1.0, rng_dense)
    elif labels != "sparse":
        share, _, rare = labels.removeprefix("sparse+").partition(" ")
        common.add_dense(task, out, float(share) / 100, rng_dense, rare=bool(rare))
    return out


def perform(run: Run) -> dict:
    """Train and score one run."""
    task = task_for(run.task, run.seed)
    annotations = labelled(task, run.labels, run.seed)
    settings = {"architecture": run.architecture, "seed": run.seed, "mpp": 1.0, "device": "cpu"}
    if run.architecture == "scratch":
        # A step of four patches takes the plain U-Net 1 to 2 s on one core, a quarter of it at this side.
        settings["patch_px"] = 96
    config = TrainConfig(run.balancing, **settings)
    learner = common.learner_for(task, annotations, config)
    clock = common.Clock()
    learner.refit()
    while learner.pending:
        learner.step()
    pretrained = run.architecture == "pretrained"
    instant = clock.pause(lambda: common.model_scores(task, learner.model)) if pretrained else None
    compared = 0
    while learner.step_count < run.steps or (pretrained and not compared):
        compared += learner.step().validation is not None
    with tempfile.TemporaryDirectory() as folder:
        learner.checkpoint(f"{folder}/last.safetensors")  # serves what the last steps brought
    took = clock()
    found = common.model_scores(task, learner.model)
    alone = common.model_scores(task, network_alone(learner)) if pretrained else found
    share = learner.metrics.get("share", 0.0) if pretrained else 1.0
    scored = {"share": share, "comparisons": compared, "seconds": took}
    return {**asdict(run), **scored, "instant": instant, "found": found, "network": alone}


def network_alone(learner: Learner) -> Model:
    """The network as it is after the last step, without the head that is fitted beside it; never served like this."""
    model, net = learner.model, learner.model.net
    decoder = learner.trainer.averaged
    return Model(model.metadata, TwoSpeedNet(net.features, net.head, decoder, 1.0), model.scale, ())


def run_all(runs: list[Run], workers: int) -> list[dict]:
    """All results of these runs; those kept in ``balancing-steps.jsonl`` are not made again."""
    module = "tests.benchmarks.study_balancing"
    return common.rows_of(module, [asdict(r) for r in runs], common.RESULTS / "balancing-steps.jsonl", workers)


def summary(rows: list[dict]) -> str:
    """`tables` of the model served, and of the network alone where that is another."""
    parts = ["# Balancing study", "Mean Dice, rare class in brackets, over seeds; ± is the spread (SD) over seeds."]
    parts += ["# The model served", tables(rows, "found"), "## Dice of each class", per_class(rows)]
    trained = [r for r in rows if r["architecture"] == "pretrained"]
    return "\n\n".join([*parts, "# The trained network alone", tables(trained, "network")] if trained else parts)


def per_class(rows: list[dict]) -> str:
    """Dice of each class of the model served, a table per task; which class is rare changes with the seed."""
    parts = []
    for task in dict.fromkeys(r["task"] for r in rows):
        groups = defaultdict(list)
        for row in (r for r in rows if r["task"] == task):
            groups[row["architecture"], row["labels"], row["balancing"]].append(row["found"])
        names = [n for n in next(iter(groups.values()))[0] if n not in OF_ALL]
        lines = [[*cell, *(_spread([f[n] for f in found]) for n in names)] for cell, found in groups.items()]
        parts += [TITLES[task], common.markdown(["network", "labels", "balancing", *names], lines)]
    return "\n\n".join(parts)


def tables(rows: list[dict], which: str) -> str:
    """Dice by labels and balancing; balancing pair by pair against none; labels against dense."""
    parts = []
    groups = defaultdict(list)
    for row in rows:
        groups[row["architecture"], row["task"], row["labels"], row["balancing"]].append(row[which])
    cells = list(dict.fromkeys(k[:3] for k in groups))
    lines = []
    for cell in cells:
        line = list(cell)
        for b in BALANCINGS:
            found = groups.get((*cell, b), [])
            means, rares = [f["mean"] for f in found], [f["rare"] for f in found]
            line.append(f"{_spread(means)} ({_spread(rares, 2)})" if found else "")
        lines.append(line)
    parts += [common.markdown(["network", "task", "labels", *BALANCINGS], lines), "## Gain over `none`, pair by pair"]
    lines = []
    for cell in cells:
        for b in BALANCINGS[1:]:
            pairs = list(zip(groups.get((*cell, b), []), groups.get((*cell, "none"), []), strict=False))
            if pairs:
                lines.append([*cell, b, *(_gain([p[0][k] - p[1][k] for p in pairs]) for k in ("mean", "rare"))])
    parts += [common.markdown(["network", "task", "labels", "balancing", "mean Dice", "rare class"], lines)]
    lines = []
    for a, t in dict.fromkeys(c[:2] for c in cells):
        best = {label: _best(groups, a, t, label) for label in LABELS}
        if best["dense"] is not None:
            ratios = [f"{best[x] / best['dense']:.3f}" if best[x] is not None else "" for x in LABELS]
            lines.append([a, t, *ratios])
    parts += ["## Share of the Dice of fully dense labels, each with its best balancing"]
    parts += [common.markdown(["network", "task", *LABELS], lines)]
    return "\n\n".join(parts)


def _spread(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def _gain(differences: list[float]) -> str:
    error = np.std(differences, ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else float("nan")
    return f"{np.mean(differences):+.3f} ± {error:.3f}"


def _best(groups: dict, architecture: str, task: str, labels: str) -> float | None:
    found = [groups[architecture, task, labels, b] for b in BALANCINGS if (architecture, task, labels, b) in groups]
    return max((float(np.mean([f["mean"] for f in fs])) for fs in found), default=None)


def draw(rows: list[dict]) -> None:
    """Mean Dice and Dice of the rare class against the amount of dense labels, one line per balancing."""
    rows = [r for r in rows if r["architecture"] == rows[0]["architecture"] and r["labels"] != RARE]
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    axes, save = common.figure("balancing", len(tasks), rows=1 + (len(tasks) > 2))
    for axis, task in zip(axes, tasks, strict=True):
        labels = [x for x in LABELS if any((r["task"], r["labels"]) == (task, x) for r in rows)]
        for k, (b, colour) in enumerate(zip(BALANCINGS, ("#666666", "#0072b2", "#d55e00"), strict=True)):
            for key, style in (("mean", "-"), ("rare", ":")):
                values = [
                    [r["found"][key] for r in rows if (r["task"], r["balancing"], r["labels"]) == (task, b, x)]
                    for x in labels
                ]
                middle = [np.mean(v) for v in values]
                where = np.arange(len(labels)) + 0.08 * (k - 1)  # so that no bar hides another
                axis.errorbar(where, middle, [np.std(v) for v in values], color=colour, ls=style, marker="o", ms=3,
                              capsize=2, label=b if key == "mean" else None)  # fmt: skip
        axis.set(
            title=TITLES.get(task, task),
            ylim=(0, 1),
            xlabel="labels: sparse, with so much of dense" if axis in axes[-2:] else "",
        )
        axis.set_xticks(range(len(labels)), [x.replace("sparse+", "+") + " %" * ("+" in x) for x in labels])
    axes[0].set_ylabel("Dice (solid: mean, dotted: rare class)")
    axes[0].legend(frameon=False)
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", required=True, help="settings of one run, as JSON; prints its row")
    torch.set_num_threads(1)
    print(json.dumps(perform(Run(**json.loads(parser.parse_args().one)))))
