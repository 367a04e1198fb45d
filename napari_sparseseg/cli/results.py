"""``napari-sparseseg objects``: what is in a result, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.cli.common import command, not_negative, say
from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    import argparse

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


def _summary(table: ObjectTable) -> dict[str, dict[str, Any]]:
    """Number and median area of the objects of each class."""
    out = {}
    for c in table.classes:
        area = table.numbers["area"][table.class_id == c.id]
        out[c.name] = {"objects": len(area), "area": float(np.median(area)) if len(area) else None}
    return out
