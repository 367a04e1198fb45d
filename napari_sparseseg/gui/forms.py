"""Forms for less frequent actions, made by magicgui from functions.

napari's menus and command palette open them; they use the session of the panel.
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
    """Open the form for a whole-slide prediction with all its options."""
    _dock("Predict the whole slide", predict_with_options)


def layer_form() -> None:
    """Open the form that imports annotations from a layer."""
    _dock("Annotations from a layer", annotations_from_layer)


def annotations_to_layer() -> None:
    """Copy the annotations of the active slide into a Shapes layer."""
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
    """Shapes and Labels layers that do not belong to this plugin."""
    viewer = napari.current_viewer()
    layers = [] if viewer is None else list(viewer.layers)
    own = "napari_sparseseg"
    return [la for la in layers if isinstance(la, (Labels, Shapes)) and not type(la).__module__.startswith(own)]


@magic_factory(
    call_button="Import",
    layer={
        "choices": _drawn_layers,
        "tooltip": "A Labels layer whose values are class ids, or a Shapes layer; shapes without a class get the class "
        "selected in the panel. One undo removes all of them",
    },
)
def annotations_from_layer(layer: Any) -> None:  # with a type of napari the choices would be napari's
    """Add the shapes or labels of a layer to the annotations of the active slide."""
    opened = panel()

    def start_import() -> None:
        annotations, chosen = opened.session.annotations, opened.classes.table.selected
        if layer is None:
            raise AnnotationError("there is no Shapes or Labels layer to import: create or open one first.")
        if chosen is None:
            raise AnnotationError("no class is selected: select one in the class table.")
        name = f"Importing {layer.name}"
        opened.in_background(lambda: import_layer(annotations, layer, chosen), name=name)

    opened.attempt(start_import)


@magic_factory(
    call_button="Predict",
    out={
        "label": "File",
        "mode": "w",
        "filter": "OME-Zarr (*.ome.zarr);;OME-TIFF (*.ome.tif)",
        "tooltip": "The suffix sets the format: .ome.zarr or .ome.tif",
    },
    mpp={
        "label": "µm per pixel",
        "min": 0.0,
        "max": 100.0,
        "step": 0.25,
        "tooltip": "Resolution of the result; 0 is the resolution of the training",
    },
    tissue_only={
        "label": "Tissue only",
        "tooltip": "Skip glass; it becomes the class named background or glass if there is one",
    },
    regions={"label": "Regions (GeoJSON)", "tooltip": "Outlines for QuPath, in a file beside the result"},
    areas={"label": "Areas (CSV)", "tooltip": "Area and share of each class, in a file beside the result"},
)
def predict_with_options(
    out: Path = Path("prediction.ome.zarr"),
    mpp: float = 0.0,
    tissue_only: bool = True,
    regions: bool = False,
    areas: bool = False,
) -> None:
    """Predict the whole active slide into a file; napari's activity dock shows the progress."""
    opened = panel()

    def start() -> None:
        if opened.session.model is None:
            raise PredictionError("there is no model: train or load one first.")
        stem = result_name(out)
        opened.prediction.predict_slide(
            str(out),
            mpp=mpp or None,
            tissue_only=tissue_only,
            resume=True,
            geojson=out.with_name(f"{stem}.geojson") if regions else None,
            csv=out.with_name(f"{stem}.csv") if areas else None,
        )

    opened.attempt(start)


def _dock(title: str, make: Callable[[], Any]) -> None:
    """Show a form beside the panel, in place of one that is open already."""
    window = panel().viewer.window
    if title in window.dock_widgets:
        window.remove_dock_widget(window.dock_widgets[title].native)
    window.add_dock_widget(make(), name=title, area="right")
