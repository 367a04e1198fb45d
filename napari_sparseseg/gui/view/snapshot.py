"""Pictures for a report: the view with scale bar and class legend as PNG, and the legend alone as PNG or SVG."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QFontMetricsF, QImage, QPainter

from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.gui.layers.scribbles import ScribbleLayer
from napari_sparseseg.gui.view.canvas import MARGIN, bar_font, bar_size, draw_bar
from napari_sparseseg.gui.view.scale import scale_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    import napari

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.slides import Slide

SWATCH, GAP, ROW = 14, 6, 22
"""Screen pixels: side of a swatch, space beside it, height of a row."""
PAPER, PRINT = "#ffffff", "#000000"


class _Entry(NamedTuple):
    """Where a class is in a legend, in screen pixels."""

    x: float
    y: float
    name: str
    colour: str


def snapshot(viewer: napari.Viewer, path: str | PathLike[str]) -> None:
    """Write what a viewer shows as a PNG, at the resolution of the screen, with scale bar and class legend.

    Parameters
    ----------
    viewer
        With an open slide, whose resolution and classes are shown; no panel or session is needed.
    path
        The file; one that is there is replaced.

    Raises
    ------
    SparseSegError
        Where the viewer shows no slide, or the file cannot be written.
    """
    slide, classes = _shown(viewer)
    pixels = np.ascontiguousarray(viewer.screenshot(canvas_only=True, flash=False))
    height, width, _ = pixels.shape
    seen = QImage(pixels.tobytes(), width, height, 4 * width, QImage.Format.Format_RGBA8888)
    dpr = width / viewer.canvas.size[1]
    entries, below = _laid_out(classes, width / dpr)
    picture = QImage(width, height + round(below * dpr), QImage.Format.Format_RGB32)
    picture.fill(QColor(PAPER))
    painter = QPainter(picture)
    painter.drawImage(0, 0, seen)
    bar = scale_bar(float(viewer.scene.camera.zoom), None if slide.mpp is None else slide.mpp[1])
    top = height - MARGIN * dpr - bar_size(bar, dpr).height()
    draw_bar(painter, bar, QPointF(MARGIN * dpr, top), dpr)
    painter.translate(0, height)
    _draw_legend(painter, entries, dpr)
    painter.end()
    _save(picture, Path(path))


def save_legend(classes: Sequence[ClassDef], path: str | PathLike[str]) -> None:
    """Write a class legend, one row a class: ``.svg`` with text that can be edited, else a PNG of twice the size.

    Raises
    ------
    SparseSegError
        Where there are no classes, or the file cannot be written.
    """
    if not classes:
        raise SparseSegError("there are no classes to put into a legend.")
    entries, height = _laid_out(classes, 0)
    metrics = QFontMetricsF(bar_font())
    width = 2 * MARGIN + SWATCH + GAP + max(metrics.horizontalAdvance(e.name) for e in entries)
    if Path(path).suffix.lower() == ".svg":
        _write(Path(path), lambda part: part.write_text(_svg(entries, width, height), encoding="utf-8"))
        return
    picture = QImage(round(2 * width), round(2 * height), QImage.Format.Format_RGB32)
    picture.fill(QColor(PAPER))
    painter = QPainter(picture)
    _draw_legend(painter, entries, 2.0)
    painter.end()
    _save(picture, Path(path))


def _shown(viewer: napari.Viewer) -> tuple[Slide, tuple[ClassDef, ...]]:
    """The visible slide, and the classes of its scribbles."""
    visible = [layer for layer in viewer.layers if layer.visible]
    slides = [layer.metadata["slide"] for layer in visible if layer.metadata.get("slide") is not None]
    if not slides:
        raise SparseSegError("there is no slide in view; open one, or show its layer.")
    drawn = [la.annotations.classes for la in viewer.layers if isinstance(la, ScribbleLayer) and la.visible]
    hidden = [la.annotations.classes for la in viewer.layers if isinstance(la, ScribbleLayer)]
    return slides[0], next(iter((*drawn, *hidden)), ())


def _laid_out(classes: Sequence[ClassDef], width: float) -> tuple[list[_Entry], float]:
    """Classes side by side in rows of at most `width`, or one a row, and the height of all; in screen pixels."""
    metrics, entries = QFontMetricsF(bar_font()), []
    x, y = float(MARGIN), MARGIN / 2
    for c in classes:
        needs = SWATCH + GAP + metrics.horizontalAdvance(c.name) + 3 * GAP
        if x > MARGIN and x + needs > width:
            x, y = float(MARGIN), y + ROW
        entries.append(_Entry(x, y, c.name, c.colour))
        x += needs
    return entries, (y + ROW + MARGIN / 2 if entries else 0.0)


def _draw_legend(painter: QPainter, entries: Sequence[_Entry], scale: float) -> None:
    painter.setFont(bar_font(scale))
    painter.setBrush(Qt.BrushStyle.NoBrush)
    for e in entries:
        swatch = QRectF(e.x * scale, (e.y + (ROW - SWATCH) / 2) * scale, SWATCH * scale, SWATCH * scale)
        painter.fillRect(swatch, QColor(e.colour))
        painter.setPen(QColor(PRINT))
        painter.drawRect(swatch)
        text = QRectF((e.x + SWATCH + GAP) * scale, e.y * scale, 1e5, ROW * scale)
        painter.drawText(text, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), e.name)


def _svg(entries: Sequence[_Entry], width: float, height: float) -> str:
    rows = [
        f'<rect x="{e.x:g}" y="{e.y + (ROW - SWATCH) / 2:g}" width="{SWATCH}" height="{SWATCH}" fill="{e.colour}" '
        f'stroke="{PRINT}"/>\n<text x="{e.x + SWATCH + GAP:g}" y="{e.y + ROW * 0.7:g}">{html.escape(e.name)}</text>'
        for e in entries
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="13">\n' + "\n".join(rows) + "\n</svg>\n"
    )


def _save(picture: QImage, path: Path) -> None:
    def write(part: Path) -> None:
        if not picture.save(str(part), "PNG"):
            raise OSError("Qt could not write the picture")

    _write(path, write)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_atomic(path, write)
    except OSError as error:
        raise SparseSegError(f"cannot write {path}: {error}. Choose another folder.") from error
