"""napari's File > Open Sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_sparseseg.gui.reader import LayerData


def sample_layers() -> list[LayerData]:
    """The sample slide; with the panel open it can be scribbled on at once."""
    from napari_sparseseg.gui.reader import read_slide
    from napari_sparseseg.samples import sample_slide

    return read_slide(str(sample_slide()))
