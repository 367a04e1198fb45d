"""``napari-sparseseg clean``, and its options where a prediction is cleaned at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.cli.common import command, not_negative, say
from napari_sparseseg.errors import SparseSegError

if TYPE_CHECKING:
    import argparse

    from napari_sparseseg.prediction.results.cleanup import CleanUp

_WAIST = 1.0


def add_clean(commands: Any) -> None:
    """Describe the command."""
    clean = command(commands, "clean", _clean, "clean up a predicted label image, beside what was predicted")
    clean.add_argument("result", type=Path, metavar="RESULT.ome.zarr", help="a prediction")
    add_clean_options(clean)
    clean.add_argument(
        "--name", default="cleaned", help="name of the new label image, labels/NAME; default: %(default)s"
    )
    clean.add_argument("--geojson", type=Path, metavar="FILE", help="also write its regions as QuPath objects")
    clean.add_argument("--csv", type=Path, metavar="FILE", help="also write the area of each class")
    clean.add_argument("--regions", metavar="FILE[:CLASS]", help="measure these regions apart; see predict")
    clean.add_argument("--slide", type=Path, help="the slide, for --regions that do not begin at its corner")
    clean.add_argument(
        "--min-area", type=not_negative, default=100.0, metavar="UM2",
        help="leave smaller objects out of the files, in um2; default: %(default)s",
    )  # fmt: skip
    clean.add_argument("--overwrite", action="store_true", help="replace what exists")


def add_clean_options(parser: argparse.ArgumentParser) -> None:
    """Describe what to do; see `clean_up_of`."""
    group = parser.add_argument_group("clean-up, in this order; lengths are pixels where the slide has no mpp")
    group.add_argument(
        "--unsure-below", type=not_negative, default=0.0, metavar="P",
        help="pixels whose best class has a lower probability (0 to 1) become the class unsure",
    )  # fmt: skip
    group.add_argument(
        "--smooth-um", type=not_negative, default=0.0, metavar="UM",
        help="each pixel takes the most frequent class within this radius",
    )  # fmt: skip
    group.add_argument("--holes-um2", type=not_negative, default=0.0, metavar="UM2", help="fill holes up to this area")
    group.add_argument(
        "--smallest-um2", type=not_negative, default=0.0, metavar="UM2",
        help="merge smaller regions into what surrounds them",
    )  # fmt: skip
    group.add_argument(
        "--separate", action="append", default=[], metavar="CLASS",
        help="cut objects of this class that touch, at their waists; may be given again",
    )  # fmt: skip
    group.add_argument(
        "--waist-um", type=not_negative, default=_WAIST, metavar="UM",
        help="how much narrower a waist is, in radius, than what it joins; default: %(default)s",
    )  # fmt: skip


def clean_up_of(args: argparse.Namespace) -> CleanUp | None:
    """The clean-up that the options ask for; None where they ask for none."""
    from napari_sparseseg import CleanUp

    chosen = args.unsure_below, args.smooth_um, args.holes_um2, args.smallest_um2, tuple(args.separate)
    return CleanUp(*chosen, args.waist_um) if any(chosen) else None


def _clean(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg import CleanUp
    from napari_sparseseg.session import Session

    files = [path for path in (args.geojson, args.csv) if path is not None]
    for path, suffix in ((args.geojson, ".geojson"), (args.csv, ".csv")):
        if path is not None and path.suffix.lower() != suffix:
            raise SparseSegError(f"{path} does not end with {suffix}; name it so.")
    with Session(()) as session:
        if args.slide is not None:
            with session.results.slide_of(args.result, session.open(args.slide, role="predict")):
                pass  # another slide than that of the result is refused
        result = session.results.clean_up(
            args.result, clean_up_of(args) or CleanUp(), files, name=args.name,
            min_area_um2=args.min_area, regions=args.regions, overwrite=args.overwrite,
        )  # fmt: skip
    for row in result.table:
        area = f"{row.pixels:,} px" if row.mm2 is None else f"{row.mm2:.6g} mm2"
        say(args, f"  {row.region}: {row.class_name} {area}")
    say(args, f"wrote {result.output}")
    return result.to_json()
