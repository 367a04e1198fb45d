"""A whole predicted slide as a layer, read from its file as it is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels

from napari_sparseseg.gui.layers.prediction_colours import class_colours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.slides import Slide

LABELS = "labels/classes"


def result_layer(path: Path, slide: Slide, classes: Sequence[ClassDef]) -> Labels:
    """The class labels of a prediction over its slide, level-0 pixels being world coordinates.

    Parameters
    ----------
    path
        An OME-Zarr that a whole-slide prediction wrote.
    slide
        What was predicted.
    classes
        Names and colours.
    """
    import dask.array as da
    import zarr

    group = zarr.open_group(path / LABELS, mode="r")
    count = sum(1 for _ in group.array_keys())
    levels = [da.from_zarr(group[str(k)]) for k in range(count)]
    down = np.array(slide.shape) / levels[0].shape
    layer = Labels(
        levels if count > 1 else levels[0],
        multiscale=count > 1,
        name=f"predicted {path.name}",
        colormap=class_colours(list(classes)),
        features={"index": [c.id for c in classes], "class": [c.name for c in classes]},
        scale=down,
        # napari puts the centre of a pixel at its integer coordinate, in every layer
        translate=(down - 1) / 2,
        opacity=0.5,
    )
    layer.editable = False
    return layer
