"""The ``napari-sparseseg`` command: the same `Session` calls as the panel, without a window.

Exit codes: 0 done, 2 the user can mend it (one clear line on stderr), 130 interrupted with a checkpoint written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg import __version__
from napari_sparseseg.errors import SparseSegError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_sparseseg.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        result = args.run(args)
    except SparseSegError as error:
        return _fail(args, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result, indent=1, default=str))
    return 0


def _fail(args: argparse.Namespace, text: str) -> int:
    line = " ".join(text.split())
    if args.json:
        print(json.dumps({"error": line}))
    print(f"napari-sparseseg: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="napari-sparseseg",
        description="Scribble on a whole slide and train a segmentation network on it, with balanced loss.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "train live on a sample slide (in napari, or headless without a display)")
    demo.add_argument("--headless", action="store_true", help="no window, also where there is a display")
    demo.add_argument("--output", type=Path, default=Path("sparseseg-demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seconds", type=_positive, default=45.0, help="training time, default: %(default)s")

    info = _command(commands, "info", _info, "what is in a slide or a model, and what is wrong with it")
    info.add_argument("slide", help="a file, a folder of OME-Zarr, its address, or a model file")

    _add_train(commands)
    _add_predict(commands)
    export = _command(commands, "export", _export, "write a model for other programs: ONNX or bioimage.io")
    export.add_argument("model", type=Path, metavar="MODEL")
    export.add_argument("output", type=Path, metavar="OUT", help="OUT.onnx, or OUT.zip for a bioimage.io package")
    convert = _command(commands, "convert", _convert, "convert annotations between formats")
    convert.add_argument("source", type=Path, metavar="ANNOTATIONS_IN")
    convert.add_argument("target", type=Path, metavar="ANNOTATIONS_OUT")
    convert.add_argument("--slide", type=Path, help="the slide they belong to, for its size")
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a model on annotated slides")
    train.add_argument("slides", type=Path, nargs="+", metavar="SLIDE")
    train.add_argument("--model", type=Path, required=True, metavar="OUT.safetensors")
    train.add_argument(
        "--annotations", type=Path, nargs="+", metavar="FILE",
        help="one per slide, in the same order; default: the file beside each slide with its stem and .geojson, .xml "
        "or .sparseseg",
    )  # fmt: skip
    train.add_argument("--balancing", choices=("none", "instance", "mini-batch"), default="instance")
    train.add_argument("--mpp", type=_positive, help="training resolution in um per pixel, default: 1.0")
    train.add_argument("--encoder", default="tf_efficientnet_lite0", help="any timm encoder, default: %(default)s")
    budget = train.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=_positive, help="training time, default: 60")
    budget.add_argument("--steps", type=_positive_int, help="training steps instead of time")
    train.add_argument("--patience", type=_positive_int, help="end when so many held-out comparisons brought no gain")
    train.add_argument("--scratch", action="store_true", help="the paper's plain U-Net instead of a pretrained encoder")
    train.add_argument("--yes", action="store_true", help="download the encoder named without a question")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; default: %(default)s")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true", help="go on from the model file where it exists")
    train.add_argument("--init", type=Path, metavar="MODEL", help="start from this model")


def _add_predict(commands: Any) -> None:
    predict = _command(commands, "predict", _predict, "run a model over whole slides")
    predict.add_argument("slides", type=Path, nargs="+", metavar="SLIDE")
    predict.add_argument("--model", type=Path, required=True)
    predict.add_argument(
        "--output", type=Path, required=True, metavar="OUT", help="OUT.ome.zarr, OUT.ome.tif, or a folder"
    )
    predict.add_argument("--mpp", type=_positive, help="resolution of the result, default: the model's")
    predict.add_argument("--geojson", type=Path, metavar="FILE", help="regions as QuPath objects")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="area per class")
    predict.add_argument("--resume", action="store_true", help="finish an interrupted prediction")
    predict.add_argument("--overwrite", action="store_true", help="replace existing results")
    predict.add_argument("--tissue-only", action="store_true", help="leave glass unlabelled (0), which is faster")
    predict.add_argument("--uncertainty", action="store_true", help="store the entropy as a second image")
    predict.add_argument(
        "--flips", action="store_true", help="average over the eight flips and turns of each tile: eight times slower"
    )
    predict.add_argument(
        "--min-area", type=_not_negative, default=100.0, metavar="UM2",
        help="leave out smaller objects, um2; default: %(default)s",
    )  # fmt: skip
    predict.add_argument(
        "--ome-zarr", choices=("0.4", "0.5"), default="0.4",
        help="0.5 is sharded: far fewer files, but not every reader knows it; default: %(default)s",
    )  # fmt: skip
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; default: %(default)s")
    where = predict.add_mutually_exclusive_group()
    where.add_argument("--workers", type=_positive_int, help="threads on this machine")
    where.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="a dask.distributed cluster")


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, silent=False)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or a positive number")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _say(args: argparse.Namespace, text: str) -> None:
    if args.silent:
        return
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.demo import has_display, run_headless

    if args.headless or not has_display():
        return run_headless(args.output, args.seconds, lambda text: _say(args, text))
    from napari_sparseseg.gui.demo import run_window

    run_window()
    return {}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.slides import describe, open_slide

    if args.slide.endswith(".safetensors"):
        return _model_info(args)
    with open_slide(args.slide) as slide:
        facts = {"shape": slide.shape, "mpp": slide.mpp, **describe(slide)}
    if not args.json:
        _print_facts(facts)
    return facts


def _model_info(args: argparse.Namespace) -> dict[str, Any]:
    """What a model file says of itself; read without torch."""
    from napari_sparseseg.learning.model_file import read_recipe

    recipe = read_recipe(args.slide)
    if not args.json:
        mpp = "level-0 pixels" if recipe.mpp is None else f"{recipe.mpp:g} um per px"
        print(f"{args.slide}: model after {recipe.step} steps, {recipe.config.balancing} balancing")
        print(f"  classes   {', '.join(f'{c.id} {c.name} {c.colour}' for c in recipe.classes)}")
        print(f"  input     {mpp}, {recipe.dtype}, {', '.join(recipe.channels)}; encoder {recipe.encoder}")
        for source in recipe.sources:
            print(f"  slide     {source.get('name')}, {source.get('strokes')} strokes, {source.get('fingerprint')}")
        if recipe.metrics.get("balanced_dice") is not None:
            print(f"  held out  balanced Dice {recipe.metrics['balanced_dice']:.3f}")
        for name, version in recipe.extra.get("versions", {}).items():
            print(f"  made by   {name} {version}")
    return recipe.to_json()


def _print_facts(facts: dict[str, Any]) -> None:
    """What a person asks first, first; the JSON holds the rest."""
    mpp = facts["mpp"]
    print(f"{facts['path']}: {facts['format']}, read by {facts['backend']}, {facts['bytes'] / 1e6:,.1f} MB")
    print(f"  size      {facts['width']:,} x {facts['height']:,} px, {facts['dtype']}, {', '.join(facts['channels'])}")
    where = f" ({facts['mpp_source']})" if facts["mpp_source"] else ""
    print(f"  mpp       {f'{mpp[1]:g} x {mpp[0]:g} um per px' if mpp else 'not known: give --mpp'}{where}")
    for i, level in enumerate(facts["levels"]):
        tile = f"tiles {level['tile'][1]} x {level['tile'][0]}" + ("" if level["stored"] else ", made on the fly")
        print(f"  level {i:<3} {level['width']:,} x {level['height']:,} px, 1:{level['downsample']:g}, {tile}")
    for key, value in facts["metadata"].items():
        print(f"  {key.replace('_', ' ')}: {value}")
    for problem in facts["problems"]:
        print(f"  PROBLEM: {problem}")


def _train(args: argparse.Namespace) -> dict[str, Any]:
    """Alone, or as one of the processes that torchrun started: then the first one speaks and writes."""
    from napari_sparseseg.learning.distributed import join

    with join(args.device) as (mine, args.device):
        if not mine.first:
            args.silent, args.json = True, False
        return _train_here(args)


def _train_here(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.exchange import find_annotations
    from napari_sparseseg.session import Session

    if args.annotations and len(args.annotations) != len(args.slides):
        raise TrainingError(
            f"--annotations has {len(args.annotations)} files for {len(args.slides)} slides; give one per slide."
        )
    if args.model.suffix != ".safetensors":
        raise TrainingError(f"--model {args.model} must end in .safetensors.")
    if not args.model.resolve().parent.is_dir():
        raise TrainingError(f"the folder of --model {args.model} does not exist; make it first.")
    init = args.model if args.resume and args.model.exists() else args.init
    _agree_to_download(args)
    config = TrainConfig(
        balancing=args.balancing, mpp=args.mpp, encoder=args.encoder, device=args.device, seed=args.seed,
        architecture="scratch" if args.scratch else "pretrained",
    )  # fmt: skip
    with Session(() if init is None else _recipe_classes(init), config=config) as session:
        for i, path in enumerate(args.slides):
            session.open(path)
            session.import_annotations(args.annotations[i] if args.annotations else find_annotations(path))
        if init is not None:
            session.load_model(init)
        seconds = args.seconds if args.seconds or args.steps else 60.0
        _say(args, f"training on {len(args.slides)} slide(s), classes: {', '.join(c.name for c in session.classes)}")
        _run_training(session, args, seconds)
        if not args.silent:
            session.save_model(args.model)
        status = session.status
        result = {
            "model": str(args.model), "steps": status.step, "loss": status.loss, "seconds": round(status.seconds, 1),
            "device": status.device, "classes": [c.name for c in session.classes], "metrics": status.metrics,
            "labelled_pixels": {c.name: _labelled(session, c.id) for c in session.classes},
        }  # fmt: skip
    _say(args, f"wrote {args.model} after {result['steps']} steps, {result['seconds']} s on {result['device']}")
    return result


def _agree_to_download(args: argparse.Namespace) -> None:
    """Licence and size of an encoder that is not bundled, before its weights are fetched."""
    from napari_sparseseg.config import TrainConfig

    if not TrainConfig(encoder=args.encoder).downloads:
        return
    from napari_sparseseg.learning.encoders import encoder_info

    info = encoder_info(args.encoder)
    about = f"encoder {info.name}: {info.megabytes:,.0f} MB from {info.source}, licence: {info.licence}"
    _say(args, about)
    asked = sys.stdin.isatty() and not args.silent and not args.yes
    if not args.yes and not (asked and input("Download where it is not here yet? [y/N] ").lower().startswith("y")):
        raise TrainingError(f"{about}. It is used only after consent: give --yes.")


def _recipe_classes(model: Path) -> tuple[Any, ...]:
    from napari_sparseseg.learning.model import read_recipe

    return read_recipe(model).classes


def _run_training(session: Session, args: argparse.Namespace, seconds: float | None) -> None:
    try:
        session.train(seconds=seconds, steps=args.steps, patience=args.patience, wait=True)
    except KeyboardInterrupt:
        session.stop()
        if not args.silent:
            session.save_model(args.model)
        _say(args, f"interrupted; what was learned so far is in {args.model}")
        raise


def _labelled(session: Session, class_id: int) -> int:
    return sum(e.annotations.counts().get(class_id, 0) for e in session.set.entries)


def _predict(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.config import TrainConfig
    from napari_sparseseg.learning.backend import lean_process
    from napari_sparseseg.session import Session
    from napari_sparseseg.slide_prediction.progress_line import ProgressLine

    folder = not args.output.name.lower().endswith((".ome.zarr", ".ome.tif", ".ome.tiff"))
    if len(args.slides) > 1 and not folder:
        raise SparseSegError(f"--output {args.output} is one file, but there are {len(args.slides)} slides.")
    if len(args.slides) > 1 and (args.geojson or args.csv):
        raise SparseSegError("--geojson and --csv name one file; with several slides they are made in --output DIR.")
    lean_process()
    options = {
        "mpp": args.mpp, "resume": args.resume, "overwrite": args.overwrite, "tissue_only": args.tissue_only,
        "uncertainty": args.uncertainty, "flips": args.flips, "min_area_um2": args.min_area, "ome_zarr": args.ome_zarr,
        "workers": args.workers, "scheduler": args.scheduler,
    }  # fmt: skip
    with Session((), config=TrainConfig(device=args.device)) as session:
        unreadable = _open_all(session, args.slides)
        session.load_model(args.model)
        try:
            if len(args.slides) > 1:
                return _predict_batch(session, args, unreadable, options)
            out = args.output
            if folder:
                out.mkdir(parents=True, exist_ok=True)
                out = out / f"{args.slides[0].name.split('.')[0]}.ome.zarr"
            line = ProgressLine(args.slides[0].name)
            result = session.predict_slide(out, geojson=args.geojson, csv=args.csv, progress=line, **options)
        except KeyboardInterrupt:
            print("what is done is kept: give the same command with --resume to go on", file=sys.stderr)
            raise
    _say(args, f"wrote {out}")
    return result.to_json()


def _open_all(session: Session, paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Open slides; of several, those that cannot be opened are named and left out."""
    unreadable = []
    for path in paths:
        try:
            session.open(path, role="predict")
        except SparseSegError as error:
            if len(paths) == 1:
                raise
            unreadable.append((str(path), str(error)))
    return unreadable


def _predict_batch(
    session: Session, args: argparse.Namespace, unreadable: list[tuple[str, str]], options: dict[str, Any]
) -> dict[str, Any]:
    from napari_sparseseg.slide_prediction.progress_line import ProgressLine

    if not session.slides:
        raise SparseSegError("none of the slides can be opened: " + "; ".join(why for _, why in unreadable))
    batch = session.predict_project(args.output, progress=ProgressLine(f"{len(session.slides)} slides"), **options)
    for result in batch.results:
        _say(args, f"wrote {result.output}")
    _say(args, f"wrote {batch.summary}")
    failed = [*unreadable, *batch.failed]
    if failed:
        raise SparseSegError(f"{len(failed)} slides failed: " + "; ".join(f"{name}: {why}" for name, why in failed))
    return batch.to_json()


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.learning.model import load_model

    model = load_model(args.model, device="cpu")
    from napari_sparseseg.learning.export import export_model

    export_model(model, args.output)
    _say(args, f"wrote {args.output}")
    return {"output": str(args.output), "classes": [c.name for c in model.recipe.classes]}


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.exchange import convert
    from napari_sparseseg.slides import open_slide

    shape = None
    if args.slide is not None:
        with open_slide(args.slide) as slide:
            shape = slide.shape
    convert(args.source, args.target, shape)
    _say(args, f"wrote {args.target}")
    return {"output": str(args.target)}
