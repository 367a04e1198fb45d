"""A project as one HTML page that needs no network, no script and no napari: for a colleague, or for the record."""

from __future__ import annotations

import base64
import hashlib
import html
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg import __version__
from napari_sparseseg.annotations import Annotations
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.geometry import Box
from napari_sparseseg.io.measurements import AreaTable, plain_text
from napari_sparseseg.io.results import label_images, open_result
from napari_sparseseg.session.binding import listed_slide
from napari_sparseseg.session.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from napari_sparseseg.annotations import Snapshot
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.geometry import Frame
    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.io.results import StoredResult
    from napari_sparseseg.learning.model_file import ModelMetadata
    from napari_sparseseg.session.project import SlideRecord
    from napari_sparseseg.slides import Slide

_SIDE = 900
"""Longer side of a picture in pixels."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d1f23; max-width: 1120px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.7em; margin-bottom: 0; } h2 { border-bottom: 1px solid #ccd; padding-bottom: .2em; margin-top: 2em; }
h1, h2, h3, td, p, figcaption { overflow-wrap: anywhere; } .sub, figcaption, .note { color: #5b6270; }
table { border-collapse: collapse; margin: .6em 0 1.2em; } th { text-align: left; font-weight: 600; }
th, td { padding: .25em .9em .25em 0; vertical-align: top; border-bottom: 1px solid #e6e8ee; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .5em;
  vertical-align: -.08em; border: 1px solid #0003; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.pictures { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; flex: 1 1 320px; max-width: 540px; }
img { width: 100%; border: 1px solid #d6d9e0; } code { font-size: .86em; overflow-wrap: anywhere; }
.problem { background: #fff4d6; border-left: 4px solid #d9a400; padding: .4em .8em; margin: .5em 0; }
section { break-inside: avoid-page; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_IMAGES = (".ome.zarr", ".ome.tif", ".ome.tiff")


@dataclass
class _SlidePart:
    """What the page says about a slide."""

    record: SlideRecord
    slide: Slide | None
    problems: list[str] = field(default_factory=list)
    snapshot: Snapshot | None = None
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    areas: list[tuple[str, list[AreaRow], tuple[ClassDef, ...]]] = field(default_factory=list)


def write_report(project: Path, output: Path, results: Sequence[Path] = ()) -> tuple[str, ...]:
    """Write the page; returns what could not be shown, one sentence each.

    Parameters
    ----------
    project
        A project folder; it is neither locked nor changed.
    output
        Replaced if it exists.
    results
        Label images, or folders that hold some; none: those in the project's folder ``predictions``.

    Raises
    ------
    ProjectError
        Where it is no project.
    """
    opened = Project.open(project)
    problems = list(opened.problems)
    by_slide = _results_by_slide(_label_images(results or [opened.path / "predictions"]), problems)
    parts = []
    for record in opened.state.slides:
        part = _slide_part(opened, record, by_slide.pop(record.fingerprint, []))
        parts.append(part)
    for paths in by_slide.values():
        problems += [f"{path} was not made of a slide of this project." for path in paths]
    text = "".join(_page(opened, parts, problems))
    write_atomic(output, lambda path: path.write_text(text, encoding="utf-8"))
    return (*problems, *(p for part in parts for p in part.problems))


def _label_images(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir() and not path.name.lower().endswith(_IMAGES):
            yield from sorted(p for p in path.iterdir() if p.name.lower().endswith(_IMAGES))
        elif path.name.lower().endswith(_IMAGES):
            yield path


def _results_by_slide(paths: Iterable[Path], problems: list[str]) -> dict[str, list[Path]]:
    """Readable results by the fingerprint of their slide."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        try:
            with open_result(path) as result:
                found.setdefault(str(result.record.get("slide", "")), []).append(path)
        except SparseSegError as error:
            problems.append(str(error))
    return found


def _slide_part(project: Project, record: SlideRecord, results: Sequence[Path]) -> _SlidePart:
    slide, why = listed_slide(project, record)
    part = _SlidePart(record, slide, [f"{why}."] if why else [])
    try:
        part.snapshot = Annotations.load(project.annotations_path(record)).snapshot()
    except SparseSegError as error:
        part.problems.append(str(error))
    if slide is None:
        return part
    with slide:
        if record.mpp is not None:
            slide.mpp = record.mpp
        try:
            part.problems += [f"{w.rstrip('.')}." for w in slide.warnings]
            pixels, frame = slide.thumbnail(_SIDE)
            picture = _eight_bit(pixels, rgb=slide.is_rgb)
            drawn = _drawn(part.snapshot, frame, picture.shape[:2]) if part.snapshot is not None else None
            if drawn is not None and part.snapshot is not None:
                part.pictures.append(("What was drawn", _overlay(picture, drawn, part.snapshot.classes, 0.85)))
            else:
                part.pictures.append(("Slide", picture))
            for path in results:
                for image in label_images(path):
                    _add_result(part, image, _result_title(path, image), picture, frame)
        except SparseSegError as error:
            part.problems.append(str(error))
    return part


def _result_title(path: Path, image: Path) -> str:
    """The file, and which of its label images where it is not what was predicted."""
    return path.name if image == path or image.name == "classes" else f"{path.name}, {image.name}"


def _add_result(part: _SlidePart, path: Path, title: str, picture: np.ndarray, frame: Frame) -> None:
    from napari_sparseseg.prediction.results.regions import RegionMask

    with open_result(path) as result:
        regions = RegionMask.from_json(result.record.get("regions") or {}).regions
        table = AreaTable(result.classes, result.placement, regions)
        small = _measured(result, table, frame, picture.shape[:2])
        part.areas.append((title, table.rows(part.record.path), result.classes))
        part.pictures.append((f"Predicted: {title}", _overlay(picture, small, result.classes, 0.5)))


def _measured(result: StoredResult, table: AreaTable, frame: Frame, shape: tuple[int, ...]) -> np.ndarray:
    """Count a result into a table; its labels uint8 in the pixels of a thumbnail."""
    small = np.zeros(shape, np.uint8)
    index = []
    for side, have, asked, own in zip(
        shape, result.shape, frame.downsample, result.placement.frame.downsample, strict=True
    ):
        index.append(np.minimum(((np.arange(side) + 0.5) * asked / own).astype(np.intp), have - 1))
    for band in result.bands():
        labels = result.read(band)
        table.add_rows(band.y, labels)
        mine = (index[0] >= band.y) & (index[0] < band.y1)
        small[mine] = labels[np.ix_(index[0][mine] - band.y, index[1])]
    return small


def _drawn(snapshot: Snapshot, frame: Frame, shape: tuple[int, ...]) -> np.ndarray | None:
    """Labels in the pixels of a thumbnail, thin strokes too; None where nothing is drawn."""
    if not any(snapshot.counts().values()):
        return None
    level = max(0, int(np.log2(min(frame.downsample))))
    labels = snapshot.read(Box(0, 0, *snapshot.shape), level)
    index = [
        np.minimum(((np.arange(n) + 0.5) * d / (1 << level)).astype(np.intp), have - 1)
        for n, d, have in zip(shape, frame.downsample, labels.shape, strict=True)
    ]
    small: np.ndarray = labels[np.ix_(*index)]
    return small


def _eight_bit(pixels: np.ndarray, *, rgb: bool) -> np.ndarray:
    """uint8 (h, w, 3): colours as they are, the mean of other channels stretched to grey."""
    if rgb and pixels.dtype == np.uint8:
        return pixels[..., :3]
    grey = pixels.astype(np.float32).mean(axis=2)
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = np.clip((grey - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _overlay(picture: np.ndarray, labels: np.ndarray, classes: Sequence[ClassDef], opacity: float) -> np.ndarray:
    table = np.zeros((256, 3), np.float32)
    for c in classes:
        table[c.id] = c.rgb
    mixed = np.where(labels[..., None] > 0, (1 - opacity) * picture + opacity * table[labels], picture)
    return mixed.astype(np.uint8)


def _page(project: Project, parts: Sequence[_SlidePart], problems: Sequence[str]) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_e(project.path.stem)}</title><style>{_STYLE}</style></head><body>\n"
    yield f"<h1>{_e(project.path.stem)}</h1>"
    drawn = sum(len(p.snapshot.strokes) for p in parts if p.snapshot is not None)
    yield f'<p class="sub">{_count(len(parts), "slide")}, {_count(drawn, "stroke")}; written '
    yield f"{time.strftime('%Y-%m-%d %H:%M')} by napari-sparseseg {_e(__version__)}</p>\n"
    yield from (f'<p class="problem">{_e(p)}</p>\n' for p in problems)
    yield from _classes(project.state.classes, parts)
    for part in parts:
        yield from _slide(part)
    yield from _model(project)
    yield "<h2>How it was made</h2><table>"
    yield from _row("Project", str(project.path))
    yield from _row(
        "Program", f"napari-sparseseg {__version__}, Python {platform.python_version()}, {platform.system()}"
    )
    yield "</table></body></html>\n"


def _classes(classes: Sequence[ClassDef], parts: Sequence[_SlidePart]) -> Iterator[str]:
    yield '<h2>Classes</h2><table><tr><th>Class</th><th class="n">Labelled pixels</th><th class="n">Slides</th></tr>'
    for c in classes:
        counts = [
            sum(n for k, n in p.snapshot.counts().items() if _name_of(p.snapshot.classes, k) == c.name)
            for p in parts
            if p.snapshot is not None
        ]
        yield f'<tr><td>{_swatch(c)}</td><td class="n">{sum(counts):,}</td>'
        yield f'<td class="n">{sum(n > 0 for n in counts)}</td></tr>'
    yield "</table>\n"


def _slide(part: _SlidePart) -> Iterator[str]:
    record, slide = part.record, part.slide
    yield f"<section><h2>{_e(Path(record.path).name)}</h2>"
    yield from (f'<p class="problem">{_e(p)}</p>' for p in part.problems)
    yield '<div class="pictures">'
    for caption, picture in part.pictures:
        yield f'<figure><img alt="{_e(caption)}" src="data:image/jpeg;base64,{_jpeg(picture)}">'
        yield f"<figcaption>{_e(caption)}</figcaption></figure>"
    yield "</div></section>\n"
    for name, rows, classes in part.areas:
        yield from _areas(name, rows, classes)
    yield "<table>"
    if slide is not None:
        h, w = slide.shape
        sides = () if slide.mpp is None else dict.fromkeys(f"{side:.4g}" for side in slide.mpp[::-1])
        mpp = f"{' × '.join(sides)} µm per pixel" if sides else "µm per pixel not known"
        yield from _row("Size", f"{w:,} × {h:,} px, {mpp}; {slide.contents.format}")
    yield from _row("Role", record.role)
    if part.snapshot is not None:
        dense = len(part.snapshot.dense_regions)
        more = f", and {_count(dense, 'dense region')}" if dense else ""
        yield from _row("Strokes", f"{len(part.snapshot.strokes):,}{more}")
    yield from _row("File", record.path)
    yield from _row("Fingerprint", record.fingerprint)
    yield "</table>\n"


def _areas(name: str, rows: Sequence[AreaRow], classes: Sequence[ClassDef]) -> Iterator[str]:
    """Areas of one result: a table with a column of areas and of shares for each region."""
    regions = list(dict.fromkeys(row.region for row in rows))
    unit = "px" if any(row.mm2 is None for row in rows) else "mm²"
    yield f"<h3>Areas in {_e(name)}</h3><table><tr><th>Class</th>"
    for region in regions:
        shown = "whole slide" if region == "slide" else region
        yield f'<th class="n">{_e(shown)}, {unit}</th><th class="n">%</th>'
    yield "</tr>"
    known = {c.id: c for c in classes}
    for class_id in dict.fromkeys(row.class_id for row in rows):
        of = {row.region: row for row in rows if row.class_id == class_id}
        label = _swatch(known[class_id]) if class_id in known else _e(next(iter(of.values())).class_name)
        yield f"<tr><td>{label}</td>"
        for region in regions:
            row = of.get(region)
            area = "" if row is None else f"{row.pixels:,}" if row.mm2 is None else f"{row.mm2:,.4f}"
            share = "" if row is None or row.percent is None else f"{row.percent:.1f}"
            yield f'<td class="n">{area}</td><td class="n">{share}</td>'
        yield "</tr>"
    yield "</table>\n"


def _model(project: Project) -> Iterator[str]:
    from napari_sparseseg.learning.model_file import read_metadata

    yield "<h2>Model</h2>"
    path = project.checkpoint
    if not path.exists():
        yield "<p>The project has no model yet.</p>\n"
        return
    try:
        metadata = read_metadata(path)
    except SparseSegError as error:
        yield f'<p class="problem">{_e(str(error))}</p>\n'
        return
    yield from _scores(metadata)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    mpp = "level-0 pixels" if metadata.mpp is None else f"{metadata.mpp:g} µm per pixel"
    yield "<table>"
    yield from _row("Network", f"{metadata.encoder}, {metadata.step} steps, {metadata.config.balancing} balancing")
    yield from _row("Sees", f"{mpp}, {metadata.dtype}, {', '.join(metadata.channels)}")
    yield from _row("Classes", ", ".join(c.name for c in metadata.classes))
    for source in metadata.sources:
        facts = (source.get("name"), f"{source.get('strokes')} strokes", source.get("fingerprint"))
        yield from _row("Annotations", ", ".join(map(str, facts)))
    versions = metadata.extra.get("versions")
    if isinstance(versions, dict):
        yield from _row("Libraries", ", ".join(f"{name} {version}" for name, version in versions.items()))
    yield from _row("SHA-256", digest)
    yield "</table>\n"


def _scores(metadata: ModelMetadata) -> Iterator[str]:
    """Scores of the held-out strokes, as far as the file has them."""
    scores = metadata.metrics if isinstance(metadata.metrics, dict) else {}
    classes = scores.get("classes") if isinstance(scores.get("classes"), dict) else {}
    if not classes:
        yield "<p>There are no scores: no strokes were held out.</p>"
        return
    yield f"<p>On {_e(str(scores.get('held_out', 'some')))} strokes that it was not trained on: mean Dice "
    yield f"<b>{_figure(scores.get('balanced_dice'))}</b> with every class counting the same (1 is perfect), "
    yield f"calibration error {_figure(scores.get('calibration_error'))} (0 is best).</p>"
    yield '<table><tr><th>Class</th><th class="n">Pixels</th><th class="n">Dice</th><th class="n">Precision</th>'
    yield '<th class="n">Recall</th></tr>'
    for name, values in classes.items():
        values = values if isinstance(values, dict) else {}
        yield f'<tr><td>{_e(str(name))}</td><td class="n">{_whole(values.get("pixels"))}</td>'
        yield "".join(f'<td class="n">{_figure(values.get(k))}</td>' for k in ("dice", "precision", "recall")) + "</tr>"
    yield "</table>"
    warnings = scores.get("warnings")
    yield from (f'<p class="note">{_e(str(w))}</p>' for w in (warnings if isinstance(warnings, list) else ()))


def _name_of(classes: Sequence[ClassDef], class_id: int) -> str:
    return next((c.name for c in classes if c.id == class_id), "")


def _swatch(c: ClassDef) -> str:
    return f'<span class="swatch" style="background:{_e(c.colour)}"></span>{_e(c.name)}'


def _row(name: str, value: str) -> Iterator[str]:
    yield f"<tr><th>{_e(name)}</th><td>{_e(value)}</td></tr>"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _jpeg(picture: np.ndarray) -> str:
    import imagecodecs

    return base64.b64encode(imagecodecs.jpeg_encode(np.ascontiguousarray(picture), level=88)).decode()


def _e(text: str) -> str:
    """Text that no browser takes for markup, in one line and in its own direction."""
    return html.escape(plain_text(text), quote=True)
