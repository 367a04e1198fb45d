"""Other napari tools on the same strokes, same machine: Dice, time, memory, the size at which each gives up, stalls.

    python -m tests.benchmarks.peers --install            # once: an environment per tool, 2 to 10 minutes
    python -m tests.benchmarks.peers                      # the others: 3 seeds, 2 and 7 classes
    python -m tests.benchmarks.peers --tools ours         # ours, with the learner as it is now: 8 CPU minutes
    python -m tests.benchmarks.peers --learner            # or Dice of ours and the forest from bench_learner's report
    python -m tests.benchmarks.peers --windows            # their Train button in a real napari window; needs Xvfb
    python -m tests.benchmarks.peers --tools              # nothing anew: table and picture of what was measured
    python -m pytest tests/benchmarks/test_peers.py -s

EBHI-Seg split by case, two strokes per class and field. Every tool runs in a process of its own with one thread; each
has its defaults and a setting that we made for it, and both are shown. What is measured takes the place of what was
measured before of the same tool, classes and seed, in ``peers.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import bench_learner, common
from tests.benchmarks.peer_programs import VARIANTS
from tests.helpers.data import ROOT, real_data

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = {
    "convpaint": ["napari-convpaint==1.2.0", "PyQt6"],
    "apoc": ["apoc==0.12.0", "pocl-binary-distribution==3.0"],
    "ilastik": ["ilastik-napari==0.3.1", "scipy", "PyQt5"],
}
ENVIRONMENTS = Path(os.environ.get("SPARSESEG_PEERS", common.RESULTS / "peer-environments"))
OTHERS = tuple(t for t in VARIANTS if t != "ours")
WINDOWS = ("convpaint", "ilastik")
NOT_RUN = {
    "napari-convpaint with VGG16 (its default), DINOv2, DINOv3 or JAFAR features": "it downloads the weights when the "
    "features are chosen (2026-11-26, DINOv2: 'Download failed: HTTPSConnectionPool(host='dl.fbaipublicfiles.com') ... "
    "Failed to resolve'); they may well do better than its Gaussian features",
    "ilastik-napari 0.3.1 as it installs": "'ModuleNotFoundError: No module named 'fastfilters'' (2026-11-26): that is "
    "on conda-forge only; fastfilters2 on PyPI has other functions. Its own code was run with the same filters from "
    "SciPy, so its Dice stands and its times do not",
    "APOC with trees of depth 8": "they had not learned and labelled eight small fields after 70 CPU s",
    "QuPath, DLPC, Labkit, Trainable Weka": "Java programs, not from these registries; the random forest stands for "
    "their method",
    "Quick Annotator, MONAI Label, RootPainter": "servers or binary tools of another workflow; not tried",
}
ATTACKS = (
    "Badly set up? Each tool has what it does unasked and our best guess at a better setting; the better of the two is "
    "what to compare with (the forest's wider filters are worse). "
    "convpaint's stronger features could not be had: this is no verdict on them.",
    "The same strokes? All tools read one file; ours draws its strokes again and refuses to run when they differ.",
    "The same machine, one thread each: CPU seconds, which a busy machine changes little. ilastik's filters are "
    "SciPy's here, slower than its own.",
    "Memory: the most that the process held, imports included; the limit of 12 GB is on what is written to.",
    "Larger images: the first test field side by side; a tool may label less than all of a slide, which is not tried.",
)
NAMES = {"forest": "random forest", "convpaint": "convpaint", "apoc": "APOC", "ilastik": "ilastik", "ours": "ours"}
CLASSES = {2: "gland / background", 7: "seven classes"}
COLOURS = {"forest": "#d55e00", "convpaint": "#009e73", "apoc": "#cc79a7", "ilastik": "#e69f00", "ours": "#0072b2"}

Row = dict[str, Any]


def python_of(tool: str) -> Path:
    """The interpreter of a tool's environment; the present one for the forest and ours."""
    return ENVIRONMENTS / tool / "bin" / "python" if tool in PACKAGES else Path(sys.executable)


def install(tools: Sequence[str]) -> None:
    """An environment for each of these tools that needs one, from the package registry."""
    for tool, packages in ((t, PACKAGES[t]) for t in tools if t in PACKAGES):
        venv.create(ENVIRONMENTS / tool, with_pip=True)
        subprocess.run([python_of(tool), "-m", "pip", "install", "-q", *packages], check=True)


def _child(tool: str, arguments: Sequence[object], folder: Path, before: Sequence[str] = ()) -> tuple[list[Row], str]:
    """The JSON lines that a tool's process printed, and why it failed, if it did."""
    command = [*before, python_of(tool), ROOT / "tests/benchmarks/peer_programs.py", tool, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POCL_MAX_PTHREAD_COUNT": "1", "PYTHONPATH": str(ROOT)}
    environment |= {} if before else {"QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not done.returncode:
        return lines, ""
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return lines, said[-1][:200]


def run_tool(
    tool: str, variant: str, data: Path, sides: Sequence[int], longest: float
) -> tuple[Row, np.ndarray | None]:
    """What one tool reports and its labels; its error instead, when it fails."""
    out = data.with_name(f"{tool}-{variant}.npz")
    lines, failed = _child(tool, [variant, data, out, "--longest", longest, "--sides", *sides], data.parent)
    if not lines:
        return {"failed": failed}, None
    if failed:
        lines.append({"side": sides[len(lines) - 1], "failed": failed})
    with np.load(out) as found:
        return {**lines[0], **({"sides": lines[1:]} if sides else {})}, found["labels"]


def _strokes(classes: int, seed: int, folder: Path) -> tuple[Path, bench_learner.Fields, np.ndarray]:
    """The file for the tools, the fields, and which of them are scored."""
    fields = bench_learner.load(real_data("ebhi_seg"))
    fields = fields.two_classes() if classes == 2 else fields
    train, test = bench_learner.split(fields.cases, seed)
    rng = np.random.default_rng(seed)
    strokes = [bench_learner.scribble(fields.labels[i], classes, rng).read((0, 0, 224, 224)) for i in train]
    given = {"train": fields.images[train], "strokes": np.stack(strokes), "test": fields.images[test]}
    np.savez(folder / "data.npz", **given, classes=classes, seed=seed)
    return folder / "data.npz", fields, test


def run(given: argparse.Namespace, classes: int, seed: int) -> list[Row]:
    """Tools on one split; larger images for the first seed and two classes only, of each tool's default."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data, fields, test = _strokes(classes, seed, Path(folder))
        for tool in given.tools:
            for k, variant in enumerate(VARIANTS[tool][: given.variants] if python_of(tool).exists() else ()):
                sides = given.sides if (seed, classes, k) == (0, 2, 0) else []
                row, labels = run_tool(tool, variant, data, sides, given.longest)
                if labels is not None:
                    row["dice"] = bench_learner.mean_dice(fields.labels[test].astype(int), labels, classes)
                known = {"tool": tool, "variant": variant, "classes": classes, "seed": seed}
                rows.append({**known, "date": datetime.now(UTC).date().isoformat(), **row})
                print(rows[-1], flush=True)
    return rows


def window(tool: str) -> Row:
    """The longest time that a tool's napari window did not answer while its own button trained and labelled."""
    with tempfile.TemporaryDirectory() as folder:
        data, _, _ = _strokes(2, 0, Path(folder))
        screen = [] if os.environ.get("DISPLAY") else [shutil.which("xvfb-run") or "xvfb-run", "-a"]
        lines, failed = _child(tool, ["window", data, "-", "--window"], Path(folder), [*screen, "env"])
    found = lines[-1] if lines else {"failed": failed}
    return {"tool": tool, "variant": "window", "classes": 2, "seed": 0, "load": os.getloadavg()[0], **found}


def merged(new: Sequence[Row]) -> list[Row]:
    """What was measured before, with the new in its place; in the order of `VARIANTS`."""
    stored = common.RESULTS / "peers.json"
    rows = {_key(r): r for r in (json.loads(stored.read_text())["data"] if stored.exists() else [])}
    for row in new:
        before = rows.get(_key(row), {})
        rows[_key(row)] = {**({} if "failed" in before else before), **row}
    return [rows[key] for key in sorted(rows, key=lambda k: (list(VARIANTS).index(k[0]), *k[2:], k[1]))]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("tool", "variant", "classes", "seed"))


def from_learner() -> list[Row]:
    """Forest and ours as ``bench_learner`` found them: same strokes, same fields, CPU seconds per thread."""
    report = json.loads((common.RESULTS / "learner-vs-forest.json").read_text())
    rows = []
    for r in report["data"]:
        known = {"classes": r["classes"], "seed": r["seed"], "date": report["machine"]["date"]}
        curve = [[float(second), dice] for second, dice in r["ours"].items()]
        found = [("forest", "default", r["forest"], r["forest seconds"])]
        found += [("ours", v, r["ours"][f"{float(v.split()[0])}"], float(v.split()[0])) for v in VARIANTS["ours"]]
        rows += [
            {**known, "tool": tool, "variant": variant, "dice": dice, "fit CPU seconds": seconds}
            | ({"curve": curve} if tool == "ours" else {})
            for tool, variant, dice, seconds in found
        ]
    return rows


def publish(rows: Sequence[Row]) -> None:
    """Tables, figure, attacks, and what did not run."""
    lines, sizes, stalls, failed = [], [], [], []
    for tool, variants in VARIANTS.items():
        for variant in variants:
            own = [r for r in rows if (r["tool"], r["variant"]) == (tool, variant)]
            failed += [f"- {tool}, {variant}, {r['classes']} classes: {r['failed']}" for r in own if "failed" in r]
            if own:
                lines.append([f"{tool}, {variant}", *_summary(own), str(max(r["date"] for r in own))])
            for s in (s for r in own for s in r.get("sides", [])):
                told = [f"{s[k]:.0f}" if k in s else "" for k in ("side", "seconds", "peak MB")]
                sizes.append([tool, *told, s.get("failed", "")])
        for r in (r for r in rows if (r["tool"], r["variant"]) == (tool, "window")):
            told = [f"{r[k]:.0f}" if k in r else "" for k in ("idle, ms", "longest, ms", "seconds")]
            stalls.append([tool, *told, f"{r['load']:.1f}", r.get("failed", "")])
    header = ["tool", "Dice, 2 classes", "7 classes", "ready, CPU s: 2", "7 classes", "MP/CPU s", "peak MB", "date"]
    _draw(rows)
    parts = ["# Other tools on the same strokes", common.markdown(header, lines)]
    if sizes:
        header = ["tool", "side, px", "CPU s", "peak MB", "failed"]
        parts += ["## Larger images, as one array; 12 GB may be written to", common.markdown(header, sizes)]
    if stalls:
        header = ["tool", "before, ms", "longest stall, ms", "work, s", "load", "failed"]
        parts += ["## A 10 ms timer in the real window while Train works", common.markdown(header, stalls)]
    parts += ["## Not run\n\n" + "\n".join([*(f"- {k}: {v}." for k, v in NOT_RUN.items()), *failed])]
    parts += ["## Attacks, and their outcome\n\n" + "\n".join(f"- {a}" for a in ATTACKS)]
    common.report("peers", "\n\n".join(parts), list(rows))


def _summary(own: Sequence[Row]) -> list[str]:
    out = []
    for classes in (2, 7):
        dice = [r["dice"] for r in own if r["classes"] == classes and "dice" in r]
        spread = f" ± {np.std(dice, ddof=1):.3f}" if len(dice) > 1 else " (one seed)"
        out.append(f"{np.mean(dice):.3f}{spread}" if dice else "-")
    for classes in (2, 7):
        values = [r["fit CPU seconds"] for r in own if r["classes"] == classes and "fit CPU seconds" in r]
        out.append(f"{np.mean(values):.0f}" if values else "-")
    for key in ("predict MP/CPU s", "peak MB"):
        values = [r[key] for r in own if key in r]
        out.append(f"{np.mean(values):.3g}" if values else "-")
    return out


def _draw(rows: Sequence[Row]) -> None:
    """Dice when each tool is ready, a dot per seed; ours as it goes on learning, a line per seed."""
    axes, save = common.figure("peers", 2)
    for axis, classes in zip(axes, (2, 7), strict=True):
        for tool, variants in VARIANTS.items():
            for variant, marker in zip(variants, "o^", strict=True):
                own = [r for r in rows if (r["tool"], r["variant"], r["classes"]) == (tool, variant, classes)]
                own = [r for r in own if "dice" in r]
                for r in own if tool == "ours" else ():
                    axis.plot(*zip(*r.get("curve", []), strict=True), "-", color=COLOURS[tool], lw=1)
                where = [r["fit CPU seconds"] for r in own], [r["dice"] for r in own]
                axis.plot(*where, marker, color=COLOURS[tool], ms=5, label=f"{NAMES[tool]}, {variant}" if own else None)
        axis.set(ylim=(0, 1), xlim=(0.9, 250), title=CLASSES[classes], xlabel="CPU seconds until ready, one thread")
        common.seconds_axis(axis)
    axes[0].set_ylabel("mean Dice, other cases; a dot per seed")
    axes[0].legend(frameon=False, fontsize=7, loc="lower left", ncols=2)
    save()


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--tools", nargs="*", choices=VARIANTS, default=OTHERS)
    parser.add_argument("--learner", action="store_true", help="only this: read what bench_learner wrote")
    parser.add_argument("--windows", nargs="*", choices=WINDOWS, help="only this, of all tools that have one")
    parser.add_argument("--variants", type=int, default=2, help="1: of each tool its default only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--classes", type=int, nargs="+", choices=(2, 7), default=[2, 7])
    parser.add_argument("--sides", type=int, nargs="*", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--longest", type=float, default=40.0, help="CPU seconds that a larger image may take")
    given = parser.parse_args(argv)
    if given.install:
        install(given.tools)
        return []
    missing = [t for t in given.tools if not python_of(t).exists()]
    if missing:
        print(f"no environment for {', '.join(missing)}: run with --install first; they are left out.", file=sys.stderr)
    if given.learner:
        rows = from_learner()
    elif given.windows is not None:
        rows = [window(tool) for tool in given.windows or WINDOWS]
    else:
        rows = []
        for classes in given.classes:
            for seed in given.seeds:
                rows += run(given, classes, seed)
                publish(merged(rows))  # an hour's work must not hang on its end
    rows = merged(rows)
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
