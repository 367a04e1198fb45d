"""Label, macro and thumbnail of a slide file: read only where somebody asks, because a label may name a patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_sparseseg.errors import SlideError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_associated(path: str, name: str) -> NDArray[np.uint8]:
    """One of the other images of a slide file, uint8 (h, w, 3); see `Slide.read_associated`."""
    import openslide
    import tifffile

    try:
        with openslide.OpenSlide(path) as file:
            if name in file.associated_images:
                return np.asarray(file.associated_images[name].convert("RGB"))
    except openslide.OpenSlideError:
        pass  # of a kind that only tifffile reads
    try:
        with tifffile.TiffFile(path) as tif:
            pixels = next(np.asarray(s.asarray()) for s in tif.series if s.name.lower() == name)
    except (OSError, ValueError, StopIteration) as error:
        raise SlideError(f"the {name} of {path} cannot be read.") from error
    grey = pixels[..., None] if pixels.ndim == 2 else pixels
    if grey.ndim != 3 or grey.dtype != np.uint8:
        raise SlideError(f"the {name} of {path} is no picture of 8 bits.")
    return np.ascontiguousarray(np.broadcast_to(grey[..., :3], (*grey.shape[:2], 3)))
