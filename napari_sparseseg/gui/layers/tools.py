"""Tools that take more than the brush covers: the snap brush, superpixels, and predicted regions.

A tool follows the path of the mouse; when the button is released it says what the path takes. It also says what a press
would take (`under`), which `hover.Hover` shows under the pointer. Whatever takes time is done on another thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_sparseseg.annotations import Stroke
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.session.clicks import REACH_PX, SIDE, Clicks, Scale, Superpixels, along, box_around
from napari_sparseseg.session.snapping import TOLERANCE, GrowingStroke, Grown, fitting_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.slides import Slide

    Finish = Callable[[Grown | None], object]
    Point = tuple[float, float]


class Outlined(NamedTuple):
    """What a press would take: `mask` (h, w) whose corner is a level-0 (y, x), level-0 pixels of its pixel (y, x)."""

    mask: NDArray[np.bool_]
    corner: Point
    step: Point
    class_id: int

    @classmethod
    def of(cls, grown: Grown, class_id: int) -> Outlined:
        """What would be painted."""
        step = float(1 << grown.level)
        return cls(grown.mask, (grown.y * step, grown.x * step), (step, step), class_id)

    def covers(self, point: Point) -> bool:
        """Whether a level-0 (y, x) lies in it."""
        at = tuple(math.floor((v - c) / s) for v, c, s in zip(point, self.corner, self.step, strict=True))
        return all(0 <= v < n for v, n in zip(at, self.mask.shape, strict=True)) and bool(self.mask[at])


@dataclass(frozen=True, slots=True)
class Bench:
    """What the tools of a layer work on.

    Attributes
    ----------
    live
        Called for the live view, whose probabilities are used where they are there.
    view
        Called for the level-0 box on screen and the level-0 pixels per screen pixel.
    run
        Calls a function on a thread and passes its result to another on this one: ``run(work, then)``.
    fail
        Called with an error, such as of a slide that cannot be read.
    """

    slide: Slide
    annotations: Annotations
    live: Callable[[], LiveView | None]
    view: Callable[[], tuple[Box, float]]
    run: Callable[[Callable[[], Any], Callable[[Any], object]], object]
    fail: Callable[[SparseSegError], object]


class Tool:
    """Collects the path of the mouse and finds what it takes.

    Attributes
    ----------
    along
        Whether the brush draws along the path as well.
    paints
        Whether what is found is painted with the selected class.
    amount
        What Shift and the wheel change, in `amounts` (least, most).
    """

    along, paints = False, True
    amounts: tuple[float, float] = (0.0, 0.0)

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._points: list[Point] = []
        self._runs: list[int] = []
        self._radius, self._number = 0.0, 0
        self.amount = 0.0

    def follow(self, start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> list[Grown]:
        """The brush of `radius` moved from `start` to `end`, level-0 (y, x); what is known already to be taken."""
        first = (float(start[0]), float(start[1]))
        if not self._points or self._points[-1] != first:
            self._points.append(first)
            self._runs.append(1)
        self._points.append((float(end[0]), float(end[1])))
        self._runs[-1] += 1
        self._radius = max(self._radius, radius)
        return []

    def forget(self) -> None:
        """Forget the path; what is being looked for is not painted any more."""
        self._points, self._runs, self._radius = [], [], 0.0
        self._number += 1

    def look(self, class_id: int, finish: Finish) -> bool:
        """Look for what the path takes; `finish` gets it, or None where there is none. False without a path."""
        if not self._points:
            return False
        work = self._work(np.array(self._points, np.float32), tuple(self._runs), self._radius, class_id)
        self.forget()
        number = self._number

        def then(found: Grown | SparseSegError) -> None:
            if number == self._number:
                finish(None if isinstance(found, SparseSegError) else found)
            if isinstance(found, SparseSegError):
                self._bench.fail(found)

        self._bench.run(lambda: _caught(work), then)
        return True

    def _work(
        self, points: NDArray[np.float32], runs: tuple[int, ...], radius: float, class_id: int
    ) -> Callable[[], Grown]:
        raise NotImplementedError

    def under(self, point: Point, class_id: int, radius: float) -> Outlined | None:
        """What a press at a level-0 (y, x) would take, where that is known already."""
        raise NotImplementedError

    def seek(self, point: Point, class_id: int, radius: float) -> Callable[[], object]:
        """A function for another thread, after which `under` knows it, or there is nothing."""
        raise NotImplementedError


class SnapBrush(Tool):
    """A stroke grows to the tissue that looks like it when the button is released; `amount` is the tolerance."""

    along = True
    amounts = (0.1, 1.2)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.amount = TOLERANCE
        self._prepared: tuple[object, GrowingStroke] | None = None
        self._found: tuple[object, Outlined] | None = None

    def _stroke(
        self, points: NDArray[np.float32], runs: tuple[int, ...], radius: float, class_id: int
    ) -> tuple[Stroke, float]:
        seen, pixel = self._bench.view()
        box = box_around(points, radius + REACH_PX * pixel).intersection(seen)
        return Stroke(0, "brush", class_id, radius, points, box, runs), pixel

    def _growing(self, stroke: Stroke, pixel: float, live: LiveView | None) -> GrowingStroke:
        bench = self._bench
        return GrowingStroke(bench.slide, bench.annotations, live, stroke, pixel=pixel, reach=REACH_PX * pixel)

    def _work(
        self, points: NDArray[np.float32], runs: tuple[int, ...], radius: float, class_id: int
    ) -> Callable[[], Grown]:
        stroke, pixel = self._stroke(points, runs, radius, class_id)
        live, tolerance = self._bench.live(), self.amount
        return lambda: self._growing(stroke, pixel, live).grow(tolerance)

    def _key(self, point: Point, class_id: int, radius: float) -> tuple[object, ...]:
        return point, class_id, radius, self._bench.view(), self._bench.annotations.version, id(self._bench.live())

    def under(self, point: Point, class_id: int, radius: float) -> Outlined | None:
        wanted = (self._key(point, class_id, radius), self.amount)
        return self._found[1] if self._found is not None and self._found[0] == wanted else None

    def seek(self, point: Point, class_id: int, radius: float) -> Callable[[], object]:
        key, tolerance, live = self._key(point, class_id, radius), self.amount, self._bench.live()
        stroke, pixel = self._stroke(np.array([point, point], np.float32), (2,), radius, class_id)

        def work() -> None:
            known = self._prepared
            growing = known[1] if known is not None and known[0] == key else self._growing(stroke, pixel, live)
            self._prepared = key, growing
            self._found = (key, tolerance), Outlined.of(growing.grow(tolerance), class_id)

        return work


class SuperpixelTool(Tool):
    """The superpixels under the path; `amount` is about how wide they are on the screen.

    Parameters
    ----------
    cells
        Those of the slide.
    """

    amounts = (12.0, 96.0)

    def __init__(self, bench: Bench, cells: Superpixels) -> None:
        super().__init__(bench)
        self._cells = cells
        self.amount = float(SIDE)

    @property
    def _scale(self) -> Scale:
        pixel = self._bench.view()[1]
        level = min(fitting_level(pixel), self._bench.annotations.top_level)
        return Scale.fitting(level, self.amount * pixel)

    def follow(self, start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> list[Grown]:
        scale = self._scale
        path = along(np.array([start, end]), (2,), 0.5 * (1 << scale.level))
        if self._cells.known(scale, path):
            return self._cells.crossed(scale, path)
        return super().follow(start, end, radius)

    def _work(
        self, points: NDArray[np.float32], runs: tuple[int, ...], radius: float, class_id: int
    ) -> Callable[[], Grown]:
        scale = self._scale
        path = along(points.astype(float), runs, 0.5 * (1 << scale.level))
        return lambda: _joined(self._cells.crossed(scale, path), scale.level)

    def under(self, point: Point, class_id: int, radius: float) -> Outlined | None:
        scale = self._scale
        if not self._cells.known(scale, [point]):
            return None
        found = self._cells.crossed(scale, [point])
        return Outlined.of(found[0], class_id) if found else None

    def seek(self, point: Point, class_id: int, radius: float) -> Callable[[], object]:
        scale = self._scale
        return lambda: self._cells.crossed(scale, [point])


class RegionTool(Tool):
    """The predicted regions under the path become dense regions, or are taken back.

    Parameters
    ----------
    clicks
        Of the session.
    accept, take_back
        Called with the level-0 points of the path.
    """

    paints = False

    def __init__(
        self,
        bench: Bench,
        clicks: Clicks,
        *,
        accept: Callable[[Sequence[Point]], object],
        take_back: Callable[[Sequence[Point]], object],
    ) -> None:
        super().__init__(bench)
        self._clicks, self._accept, self._take_back = clicks, accept, take_back
        self._found: tuple[object, Outlined] | None = None

    def look(self, class_id: int, finish: Finish) -> bool:
        if not self._points:
            return False
        path = along(np.array(self._points), tuple(self._runs), self._bench.view()[1])
        self.forget()
        (self._accept if class_id else self._take_back)(path)
        return True

    def _key(self) -> object:
        live = self._bench.live()
        return None if live is None else (id(live), live.store.changes)

    def under(self, point: Point, class_id: int, radius: float) -> Outlined | None:
        if self._found is None or self._found[0] != self._key() or not self._found[1].covers(point):
            return None
        return self._found[1]

    def seek(self, point: Point, class_id: int, radius: float) -> Callable[[], object]:
        key = self._key()

        def work() -> None:
            found = self._clicks.shown_region(point)
            if found is not None:
                shown, box, mask, step = found
                self._found = key, Outlined(mask, (box.y * step[0], box.x * step[1]), step, shown)

        return work


def _caught(work: Callable[[], Grown]) -> Grown | SparseSegError:
    try:
        return work()
    except SparseSegError as error:
        return error


def _joined(found: Sequence[Grown], level: int) -> Grown:
    """One mask of several at the same level."""
    if not found:
        return Grown(level, 0, 0, np.zeros((0, 0), bool))
    y, x = min(g.y for g in found), min(g.x for g in found)
    bottom, right = max(g.y + g.mask.shape[0] for g in found), max(g.x + g.mask.shape[1] for g in found)
    mask = np.zeros((bottom - y, right - x), bool)
    for g in found:
        mask[g.y - y : g.y - y + g.mask.shape[0], g.x - x : g.x - x + g.mask.shape[1]] |= g.mask
    return Grown(level, y, x, mask)
