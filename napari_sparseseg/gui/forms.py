"""Forms for what needs a choice but is no daily work: magicgui makes their widgets from the functions.

They are opened from napari's menus and command palette, and use the session of the open panel.
"""

# annotations are read by magicgui when it makes a form, so they are not strings here
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from magicgui import magic_factory
from magicgui.widgets import Widget
from napari.layers import Labels, Layer, Shapes

from napari_sparseseg.errors import AnnotationError, PredictionError
from napari_sparseseg.files import result_name
from napari_sparseseg.gui.commands import panel
from napari_sparseseg.gui.layers.layer_exchange import import_layer, shapes_data


def predict_slide_form() -> None:
    """Open the form for a whole-slide prediction with all that can be said about it."""
    _dock("Predict the whole slide", predict_with_options)


def layer_form() -> None:
    """Open the form that takes annotations over from a layer."""
    _dock("Annotations from a layer", annotations_from_layer)


def annotations_to_layer() -> None:
    """Show the active slide's annotations as a Shapes layer of napari."""
    opened = panel()

    def copy() -> None:
        annotations = opened.session.annotations
        opened.in_background(
            lambda: shapes_data(annotations),
            lambda made: opened.viewer.add_shapes(made[0], ndim=2, **made[1]),
            name="Outlining annotations",
        )

    opened.attempt(copy)


def _drawn_layers(_: Widget) -> list[Layer]:
    """Layers that hold somebody's drawing, the panel's own left out."""
    viewer = napari.current_viewer()
    layers = [] if viewer is None else list(viewer.layers)
    own = "napari_sparseseg"
    return [la for la in layers if isinstance(la, (Labels, Shapes)) and not type(la).__module__.startswith(own)]


@magic_factory(
    call_button="Take over",
    layer={
        "choices": _drawn_layers,
        "tooltip": "A Labels layer whose values are class ids, or a Shapes layer; shapes that name no class become the "
        "class selected in the panel. One undo takes all of it back",
    },
)
def annotations_from_layer(layer: Any) -> None:  # with a type of napari the choices would be napari's
    """Draw what a layer holds into the annotations of the active slide."""
    opened = panel()

    def take() -> None:
        annotations, chosen = opened.session.annotations, opened.classes.table.selected
        if layer is None:
            raise AnnotationError("there is no Shapes or Labels layer to take over: draw one, or open one, first.")
        if chosen is None:
            raise AnnotationError("no class is selected: choose one in the table of classes.")
        name = f"Taking over {layer.name}"
        opened.in_background(lambda: import_layer(annotations, layer, chosen), name=name)

    opened.attempt(take)


@magic_factory(
    call_button="Predict",
    out={
        "label": "File",
        "mode": "w",
        "filter": "OME-Zarr (*.ome.zarr);;OME-TIFF (*.ome.tif)",
        "tooltip": "The end of the name chooses the format: .ome.zarr or .ome.tif",
    },
    mpp={
        "label": "µm per pixel",
        "min": 0.0,
        "max": 100.0,
        "step": 0.25,
        "tooltip": "Of the result; 0 is the resolution that the network was trained at, which it reads in any case",
    },
    tissue_only={
        "label": "Tissue only",
        "tooltip": "Glass is not predicted; it gets the class called background or glass, else none",
    },
    regions={"label": "Regions (GeoJSON)", "tooltip": "For QuPath, in a file beside the result"},
    areas={"label": "Areas (CSV)", "tooltip": "mm² and share of each class, in a file beside the result"},
)
def predict_with_options(
    out: Path = Path("prediction.ome.zarr"),
    mpp: float = 0.0,
    tissue_only: bool = True,
    regions: bool = False,
    areas: bool = False,
) -> None:
    """Predict the whole active slide into a file; a bar with Cancel is in the activity dock."""
    opened = panel()

    def start() -> None:
        if opened.session.model is None:
            raise PredictionError("there is no model to predict with: train, or load one, first.")
        stem = result_name(out)
        beside: dict[str, Any] = {"geojson": regions, "csv": areas}
        files = {kind: out.with_name(f"{stem}.{kind}") for kind, wanted in beside.items() if wanted}
        opened.predict_slide(out, mpp=mpp or None, tissue_only=tissue_only, resume=True, **files)

    opened.attempt(start)


def _dock(title: str, make: Callable[[], Any]) -> None:
    """Show a form beside the panel; where it is open already, that one."""
    window = panel().viewer.window
    if title in window.dock_widgets:
        window.remove_dock_widget(window.dock_widgets[title].native)
    window.add_dock_widget(make(), name=title, area="right")
