"""The demo in a window: sample slide, its scribbles, training live."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import napari

    from napari_sparseseg.gui.reader import LayerData
    from napari_sparseseg.gui.widget import SparseSegWidget


def open_window() -> tuple[napari.Viewer, SparseSegWidget]:
    """A viewer with the panel, the sample slide with its scribbles loading; training starts when they are there."""
    import napari

    viewer = napari.Viewer(title="napari-sparseseg")
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    widget.slides.binding_changed.connect(lambda: _start(widget))
    widget.slides.open_sample()
    return viewer, widget


def run_window() -> None:
    """Show the demo until its window is closed."""
    import napari

    open_window()
    napari.run()


def _start(widget: SparseSegWidget) -> None:
    session = widget.session
    drawn = session.set.has_active and any(session.annotations.counts().values())
    if drawn and session.status.state == "idle" and not session.status.model_version:
        widget.start_training()


def sample_layers() -> list[LayerData]:
    """The sample slide; with the panel open it can be scribbled on at once."""
    from napari_sparseseg.gui.reader import read_slide
    from napari_sparseseg.samples import sample_slide

    return read_slide(str(sample_slide()))
