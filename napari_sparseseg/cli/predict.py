"""``napari-sparseseg predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.cli.clean import add_clean_options, clean_up_of
from napari_sparseseg.cli.common import (
    ProgressLine,
    add_slide_options,
    command,
    not_negative,
    open_slide_of,
    positive,
    positive_int,
    say,
    write,
)
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.files import result_name, split_regions

if TYPE_CHECKING:
    import argparse

    from napari_sparseseg.session import Session


def add_predict(commands: Any) -> None:
    """Describe the command."""
    predict = command(commands, "predict", _predict, "run a model over whole slides")
    predict.add_argument(
        "slides", type=Path, nargs="+", metavar="SLIDE", help="slides, or one project NAME.sparseseg for all its slides"
    )
    predict.add_argument(
        "--model",
        type=Path,
        help="a .safetensors file, .onnx, or a bioimage.io package .zip; default: the model of the project",
    )
    predict.add_argument(
        "--output", type=Path, required=True, metavar="OUT",
        help="OUT.ome.zarr, OUT.ome.tif, or a folder; several slides need a folder",
    )  # fmt: skip
    add_slide_options(predict)
    predict.add_argument("--mpp", type=positive, help="resolution of the result in um per pixel; default: the model's")
    predict.add_argument("--geojson", type=Path, metavar="FILE", help="also write the regions as QuPath objects")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write the area of each class")
    predict.add_argument("--resume", action="store_true", help="continue an interrupted prediction")
    predict.add_argument("--overwrite", action="store_true", help="replace existing results")
    predict.add_argument(
        "--everywhere", action="store_true",
        help="predict glass too; by default glass gets the class named background, glass or similar, else 0",
    )  # fmt: skip
    predict.add_argument(
        "--regions", metavar="FILE[:CLASS]",
        help="predict only inside the areas of an annotation file, of one class if it is named (QuPath's Region* "
        "too); in a project also a class of its annotations, CLASS or :CLASS; areas are given by region too",
    )  # fmt: skip
    predict.add_argument("--uncertainty", action="store_true", help="store the entropy as a second image")
    predict.add_argument("--probabilities", action="store_true", help="store the probability of each class as an image")
    predict.add_argument(
        "--flips", action="store_true",
        help="average over the eight flips and rotations of each tile; eight times slower",
    )  # fmt: skip
    predict.add_argument(
        "--adapt-stain", action="store_true",
        help="match the colours of the tissue to those of the training slides, where stain or scanner differ",
    )  # fmt: skip
    predict.add_argument(
        "--min-area", type=not_negative, default=100.0, metavar="UM2",
        help="leave out smaller objects, in um2; default: %(default)s",
    )  # fmt: skip
    predict.add_argument(
        "--ome-zarr", choices=("0.4", "0.5"), default="0.4",
        help="OME-Zarr version; 0.5 makes far fewer files, but not every reader knows it; default: %(default)s",
    )  # fmt: skip
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; default: %(default)s")
    add_clean_options(predict)
    where = predict.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=positive_int,
        help="number of threads on this machine; default: by cores and memory",
    )
    where.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="use the workers of a dask.distributed cluster")
    predict.add_argument(
        "--memory", type=positive, metavar="GB",
        help="what the threads may take together, 1 GB each; default: a quarter of the free memory",
    )  # fmt: skip


def _predict(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session, tune_process

    project, several, folder = _kinds(args)
    tune_process(predicting=True)
    options = {
        "mpp": args.mpp, "resume": args.resume, "overwrite": args.overwrite, "tissue_only": not args.everywhere,
        "uncertainty": args.uncertainty, "flips": args.flips, "min_area_um2": args.min_area, "ome_zarr": args.ome_zarr,
        "workers": args.workers, "memory_gb": args.memory, "scheduler": args.scheduler,
        "regions": args.regions, "probabilities": args.probabilities, "clean_up": clean_up_of(args),
        "adapt_stain": args.adapt_stain,
    }  # fmt: skip
    with Session.load(args.slides[0], read_only=True) if project else Session(()) as session:
        message = session.status.message
        if message:
            write(message, sys.stderr)
        session.config = session.config.updated({"device": args.device})
        unreadable = [] if project else _open_all(session, args)
        if (model := args.model or session.checkpoint) is not None:
            session.load_model(model)
            if session.status.message != message:
                write(session.status.message, sys.stderr)
        try:
            if several:
                return _predict_batch(session, args, unreadable, options)
            out = args.output
            if folder:
                out.mkdir(parents=True, exist_ok=True)
                out = out / f"{result_name(args.slides[0])}.ome.zarr"
            line = ProgressLine(args.slides[0].name)
            result = session.predict_slide(out, geojson=args.geojson, csv=args.csv, progress=line, **options)
        except KeyboardInterrupt:
            print("finished parts are kept; run the same command with --resume to continue", file=sys.stderr)
            raise
    say(args, "; ".join(filter(None, [f"wrote {out}", result.remarks])))
    return result.to_json()


def _kinds(args: argparse.Namespace) -> tuple[bool, bool, bool]:
    """Whether a project is predicted, several slides, and into a folder; `SparseSegError` for what does not fit."""
    folder = not args.output.name.lower().endswith((".ome.zarr", ".ome.tif", ".ome.tiff"))
    project = any(path.suffix == ".sparseseg" for path in args.slides)
    several = project or len(args.slides) > 1
    if project and len(args.slides) > 1:
        raise SparseSegError("give one project, or slides; for several projects, run the command for each.")
    if not project and args.model is None:
        raise SparseSegError("slides need --model MODEL; only a project has a model of its own.")
    if several and not folder:
        raise SparseSegError(f"--output {args.output} is one file, but there may be several slides; name a folder.")
    if several and (args.geojson or args.csv):
        raise SparseSegError("--geojson and --csv name one file; with several slides they are made in --output DIR.")
    if several and args.regions and split_regions(args.regions)[0]:
        raise SparseSegError(
            f"--regions {args.regions} belongs to one slide, but there may be several; name a class of the project's "
            "annotations instead."
        )
    return project, several, folder


def _open_all(session: Session, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Open slides; of several, those that cannot be opened are named and left out."""
    unreadable = []
    for path in args.slides:
        try:
            open_slide_of(session, path, args, "predict")
        except SparseSegError as error:
            if len(args.slides) == 1:
                raise
            unreadable.append((str(path), str(error)))
    return unreadable


def _predict_batch(
    session: Session, args: argparse.Namespace, unreadable: list[tuple[str, str]], options: dict[str, Any]
) -> dict[str, Any]:
    if not session.slides:
        raise SparseSegError("; ".join(["none of the slides can be opened", *(why for _, why in unreadable)]) + ".")
    batch = session.predict_project(args.output, progress=ProgressLine(f"{len(session.slides)} slides"), **options)
    for result in batch.results:
        say(args, "; ".join(filter(None, [f"wrote {result.output}", result.remarks])))
    say(args, f"wrote {batch.summary}")
    failed = [*unreadable, *batch.failed]
    if failed:
        raise SparseSegError(f"{len(failed)} slides failed: " + "; ".join(f"{name}: {why}" for name, why in failed))
    return batch.to_json()
