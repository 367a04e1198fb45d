"""The command ``runs``: the training runs of a project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.cli.common import command, say

if TYPE_CHECKING:
    import argparse

    from napari_sparseseg.session.run_files import KeptRun


def add_runs(commands: Any) -> None:
    """Describe the command."""
    parser = command(commands, "runs", _runs, "list, compare, export and name the training runs of a project")
    parser.add_argument("project", type=Path, help="project folder (.sparseseg)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", nargs=2, metavar="RUN", help="settings and held-out scores of two, side by side")
    what.add_argument("--export", nargs=2, metavar=("RUN", "FILE"), help="write its model as one .safetensors file")
    what.add_argument("--use", metavar="RUN", help="go back to it: the project opens with its model")
    what.add_argument("--name", nargs=2, metavar=("RUN", "NAME"), help="name it, so that it is never deleted")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE")
    parser.epilog = "RUN is a name, or the beginning of an id."


def _runs(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session
    from napari_sparseseg.session.runs import export_run, find_run, project_runs, side_by_side

    runs = project_runs(args.project)
    if args.compare:
        first, second = (find_run(runs, text) for text in args.compare)
        rows = side_by_side(first, second)
        width = max(map(len, rows))
        say(args, f"{'':{width}}  {first.title} | {second.title}")
        for name, (a, b) in rows.items():
            say(args, f"{name:{width}}  {shown(a)} | {shown(b)}{'' if a == b else '  *'}")
        return {"runs": [first.id, second.id], "compared": {k: list(v) for k, v in rows.items()}}
    if args.export:
        run = find_run(runs, args.export[0])
        export_run(run, args.export[1], overwrite=args.overwrite)
        say(args, f"wrote the model of {run.title} to {args.export[1]}")
        return {"run": run.id, "model": args.export[1]}
    if args.use or args.name:
        run = find_run(runs, args.use or args.name[0])
        with Session.load(args.project) as session:
            if args.use:
                session.runs.use(run.id)
            else:
                session.runs.rename(run.id, args.name[1])
        say(args, f"the project's model is that of {run.title}" if args.use else f"{run.id} is {args.name[1]!r}")
        return {"run": run.id}
    for run in runs:
        say(args, described(run))
    if not runs:
        say(args, "no training run was kept")
    return {"runs": [_values(run) for run in runs]}


def described(run: KeptRun) -> str:
    """A run in one line."""
    parts = [run.id, f"Dice {shown(run.dice)}", f"{run.metadata.step} steps", f"{run.strokes} strokes"]
    parts += [run.config.balancing, "" if run.story.trained else "not trained here", run.story.name]
    return ", ".join(part for part in parts if part)


def shown(value: Any) -> str:
    """A setting or a score for people."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) and value < 1 else str(value)


def _values(run: KeptRun) -> dict[str, Any]:
    return {
        "id": run.id, "name": run.story.name, "ended": run.ended.isoformat(timespec="seconds"),
        "seconds": run.story.seconds, "steps": run.metadata.step, "strokes": run.strokes, "dice": run.dice,
        "model": str(run.model), "bytes": run.size, "trained": run.story.trained, "before": run.story.before,
    }  # fmt: skip
