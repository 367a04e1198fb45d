"""The bundled slides in a window: napari's File > Open Sample, and the demo that trains on the synthetic one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import napari

    from napari_sparseseg.gui.reader import LayerData
    from napari_sparseseg.gui.widget import SparseSegWidget


def open_window() -> tuple[napari.Viewer, SparseSegWidget]:
    """Open a viewer with the panel and load the synthetic sample with its scribbles; then training starts."""
    import napari

    viewer = napari.Viewer(title="napari-sparseseg demo: synthetic H&E slide with known truth")
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    widget.slides.binding_changed.connect(lambda: _start(widget))
    widget.slides.open_sample()
    return viewer, widget


def run_window() -> None:
    """Run the demo until its window is closed."""
    import napari

    open_window()
    napari.run()


def _start(widget: SparseSegWidget) -> None:
    session = widget.session
    drawn = session.entry is not None and any(session.annotations.counts().values())
    if drawn and session.status.state == "idle" and not session.status.model_version:
        widget.start_training()


def skin_layers() -> list[LayerData]:
    """The real slide; the panel adopts it and draws its scribbles. (A sample without layers is an error in napari.)"""
    from qtpy.QtCore import QTimer

    from napari_sparseseg.gui.commands import panel
    from napari_sparseseg.gui.reader import read_slide
    from napari_sparseseg.samples import skin_slide

    opened = panel()
    QTimer.singleShot(0, lambda: opened.when_complete(lambda: opened.slides.open_skin()))  # when napari has the layers
    return read_slide(str(skin_slide()))


def sample_layers() -> list[LayerData]:
    """The synthetic slide; an open panel adopts it at once."""
    from napari_sparseseg.gui.reader import read_slide
    from napari_sparseseg.samples import sample_slide

    return read_slide(str(sample_slide()))
