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
from napari_sparseseg.cli.common import command, positive, say
from napari_sparseseg.cli.predict import add_predict
from napari_sparseseg.cli.train import add_train
from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        description="Train a segmentation network on scribbled whole slides with a balanced loss, and predict slides.",
        epilog="Exit codes: 0 done; 2 a mistake that you can fix, explained in one line on stderr; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = command(commands, "demo", _demo, "train live on a sample slide, in napari or, without a display, headless")
    demo.add_argument("--headless", action="store_true", help="open no window, even if there is a display")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("sparseseg-demo"),
        metavar="DIR",
        help="folder for the results; default: %(default)s",
    )
    demo.add_argument("--seconds", type=positive, default=45.0, help="training time; default: %(default)s")

    info = command(commands, "info", _info, "print what a slide or a model file contains, and any problems")
    info.add_argument("slide", metavar="SLIDE", help="slide file, OME-Zarr folder or address, or model file")

    add_train(commands)
    add_predict(commands)
    export = command(commands, "export", _export, "export a model for other programs, as ONNX or bioimage.io package")
    export.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors file")
    export.add_argument("output", type=Path, metavar="OUT", help="OUT.onnx, or OUT.zip for a bioimage.io package")
    convert = command(commands, "convert", _convert, "convert annotations between formats")
    convert.add_argument("source", type=Path, metavar="ANNOTATIONS_IN", help="file in any known format")
    convert.add_argument(
        "target",
        type=Path,
        metavar="ANNOTATIONS_OUT",
        help="the suffix chooses the format: .geojson .xml .sparseseg .tif .zarr",
    )
    convert.add_argument(
        "--slide", type=Path, help="slide that they belong to; needed if the file does not state its size"
    )
    return parser


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.cli.demo import has_display, run_headless

    if args.headless or not has_display():
        return run_headless(args.output, args.seconds, lambda text: say(args, text))
    from napari_sparseseg.gui.demo import run_window

    run_window()
    return {}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.cli.describe import describe
    from napari_sparseseg.slides import open_slide

    if args.slide.endswith(".safetensors"):
        return _model_info(args)
    with open_slide(args.slide) as slide:
        facts = {"shape": slide.shape, "mpp": slide.mpp, **describe(slide)}
    if not args.json:
        _print_facts(facts)
    return facts


def _model_info(args: argparse.Namespace) -> dict[str, Any]:
    """What a model file says of itself; read without torch."""
    from napari_sparseseg.learning.model_file import read_metadata

    metadata = read_metadata(args.slide)
    if not args.json:
        mpp = "level-0 pixels" if metadata.mpp is None else f"{metadata.mpp:g} um per px"
        print(f"{args.slide}: model after {metadata.step} steps, {metadata.config.balancing} balancing")
        print(f"  classes   {', '.join(f'{c.id} {c.name} {c.colour}' for c in metadata.classes)}")
        print(f"  input     {mpp}, {metadata.dtype}, {', '.join(metadata.channels)}; encoder {metadata.encoder}")
        for source in metadata.sources:
            print(f"  slide     {source.get('name')}, {source.get('strokes')} strokes, {source.get('fingerprint')}")
        if metadata.metrics.get("balanced_dice") is not None:
            print(f"  held out  balanced Dice {metadata.metrics['balanced_dice']:.3f}")
        for name, version in metadata.extra.get("versions", {}).items():
            print(f"  made by   {name} {version}")
    return metadata.to_json()


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


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.learning.model import load_model

    model = load_model(args.model, device="cpu")
    from napari_sparseseg.learning.export import export_model

    export_model(model, args.output)
    say(args, f"wrote {args.output}")
    return {"output": str(args.output), "classes": [c.name for c in model.metadata.classes]}


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.io import convert
    from napari_sparseseg.slides import open_slide

    shape = None
    if args.slide is not None:
        with open_slide(args.slide) as slide:
            shape = slide.shape
    convert(args.source, args.target, shape)
    say(args, f"wrote {args.target}")
    return {"output": str(args.target)}
