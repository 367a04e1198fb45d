"""The snap brush: a stroke grows to the tissue that looks like it when the pen is lifted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.annotations import Stroke
from napari_sparseseg.errors import SparseSegError
from napari_sparseseg.geometry import Box
from napari_sparseseg.session.snapping import TOLERANCE, Grown, grow_stroke

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_sparseseg.annotations import Annotations
    from napari_sparseseg.prediction.live_view import LiveView
    from napari_sparseseg.slides import Slide

REACH_PX = 120
"""Screen pixels that a region may extend beyond its stroke."""


class SnapBrush:
    """Collects the path of the brush and finds the region around it.

    Parameters
    ----------
    slide, annotations
        Of the layer that is drawn on.
    live
        Called for the live view, whose probabilities are used where they are there.
    view
        Called for the level-0 box on screen and the level-0 pixels per screen pixel.
    run
        Calls a function on a thread and passes its result to another on this one: ``run(work, then)``.
    fail
        Called with an error, such as of a slide that cannot be read.

    Attributes
    ----------
    tolerance
        How different the tissue of a region may be; 0 grows nothing.
    """

    def __init__(
        self,
        slide: Slide,
        annotations: Annotations,
        *,
        live: Callable[[], LiveView | None],
        view: Callable[[], tuple[Box, float]],
        run: Callable[[Callable[[], Grown | SparseSegError], Callable[[Grown | SparseSegError], object]], object],
        fail: Callable[[SparseSegError], object],
    ) -> None:
        self._slide, self._annotations = slide, annotations
        self._live, self._view, self._run, self._fail = live, view, run, fail
        self._points: list[tuple[float, float]] = []
        self._runs: list[int] = []
        self._radius, self._number = 0.0, 0
        self.tolerance = TOLERANCE

    def follow(self, start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> None:
        """The brush of `radius` moved from `start` to `end`, level-0 (y, x)."""
        first = (float(start[0]), float(start[1]))
        if not self._points or self._points[-1] != first:
            self._points.append(first)
            self._runs.append(1)
        self._points.append((float(end[0]), float(end[1])))
        self._runs[-1] += 1
        self._radius = max(self._radius, radius)

    def forget(self) -> None:
        """Forget the path; a region that is being looked for is not drawn any more."""
        self._points, self._runs, self._radius = [], [], 0.0
        self._number += 1

    def look(self, class_id: int, finish: Callable[[Grown | None], object]) -> bool:
        """Look for the region around the path; `finish` gets it, or None where there is none. False without a path."""
        if not self._points:
            return False
        points, runs, radius = np.array(self._points, np.float32), tuple(self._runs), self._radius
        self.forget()
        number, tolerance = self._number, self.tolerance
        slide, drawn, live = self._slide, self._annotations, self._live()
        seen, pixel = self._view()
        reach = REACH_PX * pixel
        low, high = points.min(axis=0) - radius - reach, points.max(axis=0) + radius + reach
        (y, x), (y1, x1) = np.floor(low).astype(int).tolist(), np.ceil(high).astype(int).tolist()
        box = Box(y, x, y1 - y, x1 - x).intersection(seen)
        stroke = Stroke(0, "brush", class_id, radius, points, box, runs)

        def work() -> Grown | SparseSegError:
            try:
                return grow_stroke(slide, drawn, live, stroke, pixel=pixel, reach=reach, tolerance=tolerance)
            except SparseSegError as error:
                return error

        def then(found: Grown | SparseSegError) -> None:
            if number == self._number:
                finish(found if isinstance(found, Grown) else None)
            if not isinstance(found, Grown):
                self._fail(found)

        self._run(work, then)
        return True
