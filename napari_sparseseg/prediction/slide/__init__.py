"""Whole slides: every pixel predicted, measured and written to files that other tools open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import PredictionError
from napari_sparseseg.prediction.slide.options import Options, Progress, SlideResult
from napari_sparseseg.prediction.slide.runner import SlideRun
from napari_sparseseg.prediction.slide.shards import Control

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable

    from napari_sparseseg.prediction.tiles import SavableSegmenter
    from napari_sparseseg.slides import Slide

__all__ = ["Options", "Progress", "SlideResult", "predict_slide"]


def predict_slide(
    slide: Slide,
    model: SavableSegmenter,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    pause: threading.Event | None = None,
    **options: Any,
) -> SlideResult:
    """Predict a whole slide into ``OUT.ome.zarr`` or ``OUT.ome.tif``.

    The label image is the slide's level-0 frame scaled to the prediction resolution, uint8 class ids. It is made in
    shards; a run that was killed or stopped leaves ``OUT.partial`` and can be resumed. The result does not depend on
    the number of workers. Memory does not grow with the slide.

    Parameters
    ----------
    slide
        An open slide.
    model
        From `learning.load_model` or a session.
    out
        File or folder to make; the end of the name chooses the format.
    progress
        Called on this thread, at most ten times a second.
    stop, pause
        Set them from another thread: `pause` holds the run while it is set, `stop` ends it after the tile under way.
    **options
        The fields of `Options`: mpp, geojson, csv, uncertainty, tissue_only, resume, overwrite, workers, scheduler,
        min_area_um2, regions, flips, ome_zarr, tile.

    Raises
    ------
    PredictionStopped
        When `stop` was set; what is done is kept for `resume`.
    PredictionError
        For an output that exists, a slide that does not fit the model, a failed worker, a full disk.
    SlideError
        Where the slide cannot be read.
    """
    run = SlideRun(slide, model, Path(out), Options(**options), Control(stop, pause), progress)
    try:
        return run.execute()
    except OSError as error:
        raise PredictionError(
            f"cannot write {out}: {error}. When that is mended, resume the prediction; what is done is kept."
        ) from error
