"""``napari-sparseseg objects``, ``compare``, ``report`` and ``qupath``: what is done with results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.cli.common import command, not_negative, say, write
from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from napari_sparseseg.io.comparison import Agreement
    from napari_sparseseg.io.objects import ObjectTable


def add_result_commands(commands: Any) -> None:
    """Describe the commands."""
    objects = command(commands, "objects", _objects, "measure the connected regions of a result, one row each")
    objects.add_argument("result", type=Path, metavar="RESULT", help="a predicted .ome.zarr or .ome.tif")
    objects.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    objects.add_argument("--parquet", type=Path, metavar="FILE", help="write the table as Parquet; needs pyarrow")
    objects.add_argument("--geojson", type=Path, metavar="FILE", help="write outlines with the numbers, for QuPath")
    objects.add_argument("--detections", action="store_true", help="GeoJSON of detections instead of annotations")
    objects.add_argument("--slide", type=Path, help="the slide, to measure the optical density of H, E and DAB")
    objects.add_argument("--regions", metavar="FILE[:CLASS]", help="name the region of each object; see predict")
    objects.add_argument(
        "--min-area", type=not_negative, default=100.0, metavar="UM2",
        help="leave out smaller objects, in um2; default: %(default)s",
    )  # fmt: skip
    objects.add_argument("--overwrite", action="store_true", help="replace existing files")

    compare = command(commands, "compare", _compare, "count two results, or a result and a truth, against each other")
    compare.add_argument("a", type=Path, metavar="A", help="a label image, .ome.zarr or .ome.tif, or annotations")
    compare.add_argument("b", type=Path, metavar="B", help="the other one, of the same slide")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="write Dice, agreement and kappa by class and region")
    compare.add_argument(
        "--difference",
        type=Path,
        metavar="OUT.ome.zarr",
        help="write where they differ, a class for each pair of classes",
    )
    compare.add_argument("--slide", type=Path, help="the slide, for images that do not say their scale")
    compare.add_argument("--regions", metavar="FILE[:CLASS]", help="score regions apart too; see predict")
    compare.add_argument("--overwrite", action="store_true", help="replace existing files")

    report = command(commands, "report", _report, "write a project as one HTML page for a colleague or the record")
    report.add_argument("project", type=Path, metavar="PROJECT", help="NAME.sparseseg")
    report.add_argument("--output", type=Path, metavar="X.html", help="default: NAME.html beside the project")
    report.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="RESULT",
        help="label images or folders of them; default: those in the project's folder predictions",
    )  # fmt: skip
    report.add_argument("--overwrite", action="store_true", help="replace an existing file")

    qupath = command(
        commands, "qupath", _qupath, "list a QuPath project, make a project of it, or send results into it"
    )
    qupath.add_argument("project", type=Path, metavar="PROJECT.qpproj", help="a QuPath project")
    qupath.add_argument("--scripts", action="store_true", help="write the scripts that exchange objects into it")
    qupath.add_argument("--save", type=Path, metavar="NAME.sparseseg", help="make a project of its slides and classes")
    qupath.add_argument("--results", type=Path, nargs="+", metavar="RESULT", help="results to send into it")
    qupath.add_argument("--detections", action="store_true", help="send detections instead of annotations")
    qupath.add_argument(
        "--min-area", type=not_negative, default=100.0, metavar="UM2",
        help="leave out smaller objects, in um2; default: %(default)s",
    )  # fmt: skip
    qupath.add_argument("--overwrite", action="store_true", help="replace results that were sent and not imported")


def _objects(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session

    files = {name: getattr(args, name) for name in ("csv", "parquet", "geojson") if getattr(args, name) is not None}
    for name, path in files.items():
        if path.suffix.lower() != f".{name}":
            raise SparseSegError(f"--{name} {path} does not end with .{name}; name it so.")
    with Session(()) as session:
        table = session.results.measure_objects(
            args.result,
            tuple(files.values()),
            slide=args.slide,
            regions=args.regions,
            min_area_um2=args.min_area,
            kind="detection" if args.detections else "annotation",
            overwrite=args.overwrite,
        )
    classes = _summary(table)
    for name, facts in classes.items():
        say(
            args,
            f"  {facts['objects']:>9,}  {name}"
            + (f", median {facts['area']:.4g} {table.unit}2" if facts["area"] else ""),
        )
    for path in files.values():
        say(args, f"wrote {path}")
    return {"objects": len(table), "unit": table.unit, "classes": classes, **{k: str(v) for k, v in files.items()}}


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session

    if args.csv is not None and args.csv.suffix.lower() != ".csv":
        raise SparseSegError(f"--csv {args.csv} does not end with .csv; name it so.")
    with Session(()) as session:
        found = session.results.compare(
            args.a,
            args.b,
            args.csv or (),
            difference=args.difference,
            slide=args.slide,
            regions=args.regions,
            overwrite=args.overwrite,
        )
    for line in _comparison_lines(found):
        say(args, line)
    for path in (args.csv, args.difference):
        if path is not None:
            say(args, f"wrote {path}")
    return found.to_json()


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session

    output = args.output or args.project.absolute().with_suffix(".html")
    with Session(()) as session:
        problems = session.results.report(args.project, output, args.results, overwrite=args.overwrite)
    for problem in problems:
        write(problem, sys.stderr)
    say(args, f"wrote {output}")
    return {"output": str(output), "problems": list(problems)}


def _qupath(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session
    from napari_sparseseg.session.qupath import open_qupath, read_project, send_results

    project = read_project(args.project)
    found: dict[str, Any] = {
        "images": [{"id": i.entry, "name": i.name, "path": i.path, "problem": i.problem} for i in project.images],
        "classes": [c.name for c in project.classes],
    }
    for image in project.images:
        say(args, f"  {image.entry:>4}  {image.name}: {image.path or image.problem}")
    if args.scripts:
        found["scripts"] = [str(path) for path in project.write_scripts()]
        say(args, "wrote two scripts; in QuPath they are under Automate > Project scripts")
    if args.save is not None:
        with Session(()) as session:
            found["left_out"] = list(open_qupath(session, project))
            session.save(args.save)
        for text in found["left_out"]:
            write(text, sys.stderr)
        say(args, f"wrote {args.save}")
    if args.results:
        with Session(()) as session:
            found["sent"] = send_results(
                session,
                project,
                args.results,
                min_area_um2=args.min_area,
                kind="detection" if args.detections else "annotation",
                overwrite=args.overwrite,
            )
        for name in found["sent"]:
            say(args, f"sent the result of {name}; run the import script in QuPath")
    return found


def _comparison_lines(found: Agreement) -> Iterator[str]:
    """The scores by region and class, for people."""
    size = found.pixel_area / (1e6 if found.unit == "um" else 1)
    unit = "mm2" if found.unit == "um" else "px2"
    yield f"A {found.names[0]}, B {found.names[1]}; areas in {unit}"
    for region, counts in found.counts.items():
        n = found.compared(region)
        only = ", ".join(
            f"only in {k} {v * size:.4g}" for k, v in (("A", counts[1:, 0].sum()), ("B", counts[0, 1:].sum()))
        )
        yield (
            f"{region}: {n * size:.4g} compared ({only}), agreement {found.agreement(region):.4f}, "
            f"kappa {found.kappa(region):.4f}"
        )
        both = counts[1:, 1:]
        for k, (c, dice) in enumerate(zip(found.classes, found.dice(region), strict=True)):
            yield f"  Dice {dice:.4f}  A {both[k].sum() * size:>10.4g}  B {both[:, k].sum() * size:>10.4g}  {c.name}"


def _summary(table: ObjectTable) -> dict[str, dict[str, Any]]:
    """Number and median area of the objects of each class."""
    out = {}
    for c in table.classes:
        area = table.numbers["area"][table.class_id == c.id]
        out[c.name] = {"objects": len(area), "area": float(np.median(area)) if len(area) else None}
    return out
