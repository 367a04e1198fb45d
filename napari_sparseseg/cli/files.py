"""``napari-sparseseg info``, ``export`` and ``convert``: what is in a file, and the same in another format."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.cli.common import add_image, command, say, write
from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    import argparse

    from napari_sparseseg.slides import Slide


def add_file_commands(commands: Any) -> None:
    """Describe the commands."""
    info = command(commands, "info", _info, "print what a slide or a model file contains, and any problems")
    info.add_argument("slide", metavar="SLIDE", help="slide file, OME-Zarr folder or address, or model file")
    add_image(info)

    export = command(commands, "export", _export, "export a model for other programs, as ONNX or bioimage.io package")
    export.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors file")
    export.add_argument("output", type=Path, metavar="OUT", help="OUT.onnx, or OUT.zip for a bioimage.io package")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")

    convert = command(commands, "convert", _convert, "convert annotations between formats")
    convert.add_argument("source", type=Path, metavar="ANNOTATIONS_IN", help="file in any known format")
    convert.add_argument(
        "target", type=Path, metavar="ANNOTATIONS_OUT",
        help="the suffix chooses the format: .geojson .xml .sparseseg .tif .zarr",
    )  # fmt: skip
    convert.add_argument("--slide", type=Path, help="slide that they belong to; needed if the file has no size")
    there = convert.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace an existing file")
    there.add_argument(
        "--merge", choices=("over", "under", "replace"),
        help="add to an existing .sparseseg: over its labels, under them, or in their place",
    )  # fmt: skip


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg import open_slide

    if args.slide.lower().endswith((".safetensors", ".onnx", ".zip")):
        return _model_info(args)
    with open_slide(args.slide, image=args.image) as slide:
        facts = {"shape": slide.shape, "mpp": slide.mpp, **describe(slide)}
    if not args.json:
        _print_facts(facts)
    return facts


def _model_info(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import model_info

    metadata = model_info(args.slide)
    if not args.json:
        mpp = "level-0 pixels" if metadata.mpp is None else f"{metadata.mpp:g} um per px"
        write(f"{args.slide}: model after {metadata.step} steps, {metadata.config.balancing} balancing")
        write(f"  classes   {', '.join(f'{c.id} {c.name} {c.colour}' for c in metadata.classes)}")
        write(f"  input     {mpp}, {metadata.dtype}, {', '.join(metadata.channels)}; encoder {metadata.encoder}")
        for source in metadata.sources:
            write(f"  slide     {source.get('name')}, {source.get('strokes')} strokes, {source.get('fingerprint')}")
        if metadata.metrics.get("balanced_dice") is not None:
            write(f"  held out  balanced Dice {metadata.metrics['balanced_dice']:.3f}")
        for name, version in metadata.extra.get("versions", {}).items():
            write(f"  made by   {name} {version}")
    return metadata.to_json()


def describe(slide: Slide) -> dict[str, Any]:
    """Facts about a slide as JSON-able values, and its problems.

    The middle tile of every stored level is decoded, which finds files with a sound header and damaged pixels.

    Raises
    ------
    SlideError
        When no pixel can be read at all.
    """
    contents, pyramid = slide.contents, slide.pyramid
    levels: list[dict[str, Any]] = []
    for level, down, scale in zip(pyramid.levels, slide.downsamples, pyramid.scales, strict=True):
        h, w, _ = level.shape
        if not level.added:
            pyramid.read(len(levels), Box(h // 2, w // 2, 1, 1))
        levels.append(
            {
                "width": w,
                "height": h,
                "downsample": round(down, 6),
                "downsample_yx": [round(v, 6) for v in scale],
                "tile": [level.tile[1], level.tile[0]],
                "stored": not level.added,
            }
        )
    problems = list(slide.warnings)
    if slide.mpp is None:
        problems.append("the file does not say its micrometres per pixel (mpp)")
    return {
        "path": slide.path,
        "format": contents.format,
        "backend": contents.backend,
        "bytes": contents.bytes,
        "width": slide.shape[1],
        "height": slide.shape[0],
        "dtype": str(slide.dtype),
        "channels": list(slide.channels),
        "rgb": slide.is_rgb,
        "mpp_yx": None if slide.mpp is None else list(slide.mpp),
        "mpp_source": slide.mpp_source or "not found",
        "levels": levels,
        "background": list(slide.background),
        "image": contents.image,
        "images": [image._asdict() for image in slide.images],
        "bounds": list(slide.bounds),
        "canvas": list(slide.canvas),
        "associated": list(slide.associated),
        "metadata": slide.metadata,
        "fingerprint": slide.fingerprint,
        "bad_tiles": slide.bad_tiles,
        "problems": problems,
    }


def _print_facts(facts: dict[str, Any]) -> None:
    """Print the facts in the order in which people ask for them; the JSON has the rest."""
    mpp = facts["mpp"]
    write(f"{facts['path']}: {facts['format']}, read by {facts['backend']}, {facts['bytes'] / 1e6:,.1f} MB")
    write(f"  size      {facts['width']:,} x {facts['height']:,} px, {facts['dtype']}, {', '.join(facts['channels'])}")
    where = f" ({facts['mpp_source']})" if facts["mpp_source"] else ""
    write(f"  mpp       {f'{mpp[1]:g} x {mpp[0]:g} um per px' if mpp else 'not known: give --mpp'}{where}")
    for i, level in enumerate(facts["levels"]):
        tile = f"tiles {level['tile'][1]} x {level['tile'][0]}" + ("" if level["stored"] else ", made on the fly")
        write(f"  level {i:<3} {level['width']:,} x {level['height']:,} px, 1:{level['downsample']:g}, {tile}")
    for key, value in facts["metadata"].items():
        write(f"  {key.replace('_', ' ')}: {value}")
    for problem in facts["problems"]:
        write(f"  PROBLEM: {problem}")


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session

    with Session(()) as session:
        session.config = session.config.updated({"device": "cpu"})
        session.load_model(args.model)
        session.export_model(args.output, overwrite=args.overwrite)
        say(args, f"wrote {args.output}")
        return {"output": str(args.output), "classes": [c.name for c in session.classes]}


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg import load_annotations, open_slide, save_annotations

    with open_slide(args.slide) if args.slide is not None else nullcontext() as slide:
        if args.merge and args.target.exists():
            from napari_sparseseg.session.importing import merge_file

            merge_file(args.target, args.source, args.merge, slide)
        else:
            annotations = load_annotations(args.source, None, slide=slide)
            save_annotations(annotations, args.target, slide=slide, overwrite=args.overwrite)
    say(args, f"wrote {args.target}")
    return {"output": str(args.target)}
