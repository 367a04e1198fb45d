"""Other napari tools on the same strokes, same machine: Dice, time, memory, and the image size at which each gives up.

    python -m tests.benchmarks.peers --install          # once: an environment per tool, 2 to 10 minutes
    python -m tests.benchmarks.peers --seeds 3
    python -m pytest tests/benchmarks/test_peers.py -s

EBHI-Seg split by case, two strokes per class and field. Every tool runs in a process of its own; each
has its defaults and a setting that we made for it, and both are shown. Ours is scored after ``--seconds``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import bench_learner, common
from tests.benchmarks.peer_programs import VARIANTS
from tests.conftest import ROOT, real_data

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = {
    "convpaint": ["napari-convpaint==1.2.0", "PyQt6"],
    "apoc": ["apoc==0.12.0", "pocl-binary-distribution==3.0"],
}
ENVIRONMENTS = Path(os.environ.get("SPARSESEG_PEERS", common.RESULTS / "peer-environments"))
NOT_RUN = {
    "napari-convpaint with VGG16, DINOv2, DINOv3 or ConvNeXt features": "it downloads their weights at run time, which "
    "is not possible here; they may well do better than its Gaussian features",
    "ilastik-napari 0.3.1": "it imports fastfilters, which is not on PyPI (conda-forge only)",
    "QuPath, DLPC, Labkit, Trainable Weka": "Java programs, not from these registries; the random forest stands for "
    "their method",
    "Quick Annotator, MONAI Label, RootPainter": "servers or binary tools of another workflow; not tried",
}


def python_of(tool: str) -> Path:
    """The interpreter of a tool's environment; ours for the forest."""
    return Path(sys.executable) if tool == "forest" else ENVIRONMENTS / tool / "bin" / "python"


def install() -> None:
    """An environment per tool, from the package registry."""
    for tool, packages in PACKAGES.items():
        venv.create(ENVIRONMENTS / tool, with_pip=True)
        subprocess.run([python_of(tool), "-m", "pip", "install", "-q", *packages], check=True)


def run_tool(tool: str, variant: str, data: Path, sides: Sequence[int]) -> tuple[dict[str, Any], np.ndarray | None]:
    """What one tool reports and its labels; its error instead, when it fails."""
    out = data.with_name(f"{tool}-{variant}.npz")
    command = [python_of(tool), ROOT / "tests/benchmarks/peer_programs.py", tool, variant, data, out]
    command += ["--sides", *map(str, sides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POCL_MAX_PTHREAD_COUNT": "1", "PYTHONPATH": str(ROOT)}
    environment["QT_QPA_PLATFORM"] = "offscreen"
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=environment, cwd=data.parent, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": lines[-1][:200]}, None
    with np.load(out) as found:
        return json.loads(done.stdout.splitlines()[-1]), found["labels"]


def run(classes: int, seed: int, seconds: float, sides: Sequence[int]) -> list[dict[str, Any]]:
    """All tools on one split."""
    fields = bench_learner.load(real_data("ebhi_seg"))
    fields = fields.two_classes() if classes == 2 else fields
    train, test = bench_learner.split(fields.cases, seed)
    rng = np.random.default_rng(seed)
    strokes = [bench_learner.scribble(fields.labels[i], classes, rng).read((0, 0, 224, 224)) for i in train]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, train=fields.images[train], strokes=np.stack(strokes), test=fields.images[test])
        for tool, variants in VARIANTS.items():
            for variant in variants if python_of(tool).exists() else ():
                row, labels = run_tool(tool, variant, data, sides if seed == 0 and classes == 2 else [])
                if labels is not None:
                    row["dice"] = bench_learner.mean_dice(fields.labels[test].astype(int), labels, classes)
                rows.append({"tool": f"{tool} {variant}".strip(), "classes": classes, "seed": seed, **row})
                print(rows[-1], flush=True)
    common.torch.set_num_threads(1)
    curve = bench_learner.learner_curve(fields, seed, [3.0, seconds]).dice
    rows.append({"tool": "ours", "classes": classes, "seed": seed, "dice": curve[seconds], "fit CPU seconds": seconds})
    rows.append({"tool": "ours, 3 s", "classes": classes, "seed": seed, "dice": curve[3.0]})
    return rows


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Table, figure, and what did not run."""
    lines, sizes = [], []
    axes, save = common.figure("peers", 2)
    tools = list(dict.fromkeys(r["tool"] for r in rows))
    for axis, classes in zip(axes, (2, 7), strict=True):
        for k, tool in enumerate(tools):
            values = [r["dice"] for r in rows if r["tool"] == tool and r["classes"] == classes and "dice" in r]
            axis.plot([k] * len(values), values, "o", color="#0072b2" if tool.startswith("ours") else "#d55e00")
        axis.set_xticks(range(len(tools)), tools, rotation=35, ha="right")
        axis.set(ylim=(0, 1), title=f"{classes} classes")
    axes[0].set_ylabel("mean Dice, other cases; a dot per seed")
    save()
    for tool in tools:
        own = [r for r in rows if r["tool"] == tool]
        dice = [[r["dice"] for r in own if r["classes"] == c and "dice" in r] for c in (2, 7)]
        line = [tool, *(f"{np.mean(d):.3f} ± {np.std(d):.3f}" if d else "-" for d in dice)]
        for key in ("fit CPU seconds", "fit seconds", "predict MP/s", "peak MB"):
            values = [r[key] for r in own if key in r]
            line.append(f"{np.mean(values):.3g}" if values else "-")
        lines.append(line)
        sizes += [
            [tool, *(str(s.get(k, "")) for k in ("side", "seconds", "peak MB", "failed"))]
            for r in own
            for s in r.get("sides", [])
        ]
    header = ["tool", "Dice, 2 classes", "7 classes", "fit, CPU s", "fit, s", "predict, MP/s", "peak MB"]
    failed = [f"- {r['tool']}, {r['classes']} classes: {r['failed']}" for r in rows if "failed" in r]
    parts = ["# Other tools on the same strokes", common.markdown(header, lines)]
    if sizes:
        parts += ["## Larger images, as one array", common.markdown(["tool", "side", "s", "peak MB", "failed"], sizes)]
    parts += ["## Not run\n\n" + "\n".join([*(f"- {k}: {v}." for k, v in NOT_RUN.items()), *failed])]
    parts += [
        "## Attacks, and their outcome\n\n"
        "- Badly set up? Each tool has its defaults and our best guess beside it; convpaint's stronger features could "
        "not be had, so this is no verdict on convpaint with VGG16 or DINOv2.\n"
        "- GUI stall: convpaint trains and predicts on the GUI thread (its source has no worker), so its stall is the "
        "fit time above; ours is measured in `bench_live.py`.\n"
        "- Same strokes, fields and test cases for all, from one file; OMP_NUM_THREADS is 1, but CatBoost and PoCL may "
        "use more: compare CPU seconds."
    ]
    common.report("peers", "\n\n".join(parts), rows)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 7])
    parser.add_argument("--sides", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    given = parser.parse_args(argv)
    if given.install:
        install()
        return []
    missing = [t for t in PACKAGES if not python_of(t).exists()]
    if missing:
        print(f"no environment for {', '.join(missing)}: run with --install first; they are left out.", file=sys.stderr)
    rows = [r for c in given.classes for s in range(given.seeds) for r in run(c, s, given.seconds, given.sides)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
