"""Forms for less frequent actions, made by magicgui from functions.

napari's menus and command palette open them; they use the session of the panel.
"""

# annotations are read by magicgui when it makes a form, so they are not strings here
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import napari
import shapely
from magicgui import magic_factory
from magicgui.widgets import FunctionGui, Widget
from napari.layers import Labels, Layer, Shapes
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QDockWidget

from napari_sparseseg import CleanUp
from napari_sparseseg.errors import AnnotationError, PredictionError
from napari_sparseseg.files import result_name
from napari_sparseseg.gui.commands import PLUGIN, panel
from napari_sparseseg.gui.layers.layer_exchange import import_layer, selected_outlines, shapes_data
from napari_sparseseg.gui.results.preview import CleanPreview
from napari_sparseseg.gui.widget import SMALL_SCREEN


def predict_slide_form() -> None:
    """Open the form for a whole-slide prediction with all its options."""
    opened = panel()
    form = predict_with_options()
    form.separate.native.setMaximumHeight(SEPARATE_ROWS * form.separate.native.fontMetrics().lineSpacing())
    opened.when_complete(lambda: _PreviewLink(form, opened.prediction.preview))
    _dock("Predict the whole slide", lambda: form)


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


SEPARATE_ROWS = 4
EVERYWHERE, SHAPES, OF_CLASS = "the whole slide", "the selected shapes", "areas of "


def _places(_: Widget) -> list[str]:
    """Where one can predict: everywhere, in shapes, in what was drawn of a class."""
    viewer = napari.current_viewer()
    if viewer is None or not any(name.endswith(f"({PLUGIN})") for name in viewer.window.dock_widgets):
        return [EVERYWHERE, SHAPES]
    return [EVERYWHERE, SHAPES, *(f"{OF_CLASS}{c.name}" for c in panel().session.classes)]


def _regions(viewer: napari.Viewer, where: str) -> Any:
    """`PredictOptions.regions` for a place."""
    if where == EVERYWHERE:
        return None
    if where.startswith(OF_CLASS):
        return f":{where.removeprefix(OF_CLASS)}"  # never a file of that name
    outlines = selected_outlines(viewer)
    if not outlines:
        raise PredictionError("no shape is selected: draw a rectangle or polygon in a Shapes layer and select it.")
    return {f"shape {k}": shapely.Polygon(outline[:, ::-1]) for k, outline in enumerate(outlines, 1)}


def _classes(_: Widget) -> list[str]:
    """Names of the classes."""
    return [place.removeprefix(OF_CLASS) for place in _places(_) if place.startswith(OF_CLASS)]


def _clean_up(
    smooth_um: float, holes_um2: float, smallest_um2: float, separate: Sequence[str], unsure_below: float
) -> CleanUp | None:
    """What to clean up; None for nothing."""
    if not (smooth_um or holes_um2 or smallest_um2 or separate or unsure_below):
        return None
    return CleanUp(unsure_below / 100, smooth_um, holes_um2, smallest_um2, tuple(separate))


class _PreviewLink(QObject):
    """Keeps the preview in step with the form; closing the form ends it."""

    def __init__(self, form: FunctionGui, preview: CleanPreview) -> None:
        super().__init__(form.native)
        self._form, self._preview = form, preview
        form.changed.connect(self._on_changed)
        form.native.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """The dock that is closed takes the form out of the window."""
        if event is not None and event.type() == QEvent.Type.ParentChange and self._form.native.parent() is None:
            self._preview.show(None)
        return False

    def _on_changed(self) -> None:
        f = self._form
        wanted = f.preview.value
        chosen = (f.smooth_um, f.holes_um2, f.smallest_um2, f.separate, f.unsure_below)
        settings = _clean_up(*(field.value for field in chosen))
        self._preview.show(settings if wanted else None)


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
    where={
        "label": "Where",
        "choices": _places,
        "tooltip": "All of the slide, the selected shapes of a Shapes layer, or the areas of a class that you drew. "
        "What lies outside is not predicted and costs no time. Areas are measured for each region",
    },
    where_file={
        "label": "Where (file)",
        "mode": "r",
        "nullable": True,
        "filter": "Annotations (*.geojson *.json *.xml *.sparseseg)",
        "tooltip": "Instead: the areas of an annotation file",
    },
    smooth_um={"label": "Smooth (µm)", "max": 1000.0, "tooltip": "Each pixel takes the class that most have this near"},
    holes_um2={"label": "Fill holes (µm²)", "max": 1e9, "tooltip": "Holes up to this area get the class around them"},
    smallest_um2={
        "label": "Smallest (µm²)",
        "max": 1e9,
        "tooltip": "Smaller regions take the class of their longest border",
    },
    separate={
        "label": "Separate",
        "widget_type": "Select",
        "choices": _classes,
        "tooltip": "Objects of these classes that touch are cut at their waists, at most 512 pixels wide ones. Click a "
        "class to choose it, Ctrl+click to add one or take it away",
    },
    unsure_below={
        "label": "Unsure below (%)",
        "max": 100.0,
        "tooltip": "Where the most probable class is less probable, a pixel becomes the class unsure; 0 for none",
    },
    preview={
        "label": "Preview",
        "tooltip": "Show on the live prediction what the clean-up does; zoom in to see it fully",
    },
    probabilities={
        "label": "Probabilities",
        "tooltip": "Also store the probability of each class, 1 byte a pixel; what is unsure can then be marked later",
    },
    adapt_stain={
        "label": "Adapt stain",
        "tooltip": "Match the colours of the tissue to the training slides; for slides that are said to differ",
    },
    regions={"label": "Regions (GeoJSON)", "tooltip": "Outlines for QuPath, in a file beside the result"},
    areas={"label": "Areas (CSV)", "tooltip": "Area and share of each class, in a file beside the result"},
)
def predict_with_options(  # noqa: PLR0913 - magicgui makes a field of each
    out: Path = Path("prediction.ome.zarr"),
    mpp: float = 0.0,
    tissue_only: bool = True,
    where: str = EVERYWHERE,
    where_file: Path | None = None,
    smooth_um: float = 0.0,
    holes_um2: float = 0.0,
    smallest_um2: float = 0.0,
    separate: Sequence[str] = (),
    unsure_below: float = 0.0,
    preview: bool = False,
    probabilities: bool = False,
    adapt_stain: bool = False,
    regions: bool = False,
    areas: bool = False,
) -> None:
    """Predict the active slide into a file, with all options; napari's activity dock shows the progress.

    What is cleaned up is a second label image in the file (OME-Zarr), and the tables are those of that.
    """
    opened = panel()
    cleaned = _clean_up(smooth_um, holes_um2, smallest_um2, separate, unsure_below)

    def start() -> None:
        if opened.session.model is None:
            raise PredictionError("there is no model: train or load one first.")
        stem = result_name(out)
        opened.prediction.predict_slide(
            str(out),
            mpp=mpp or None,
            tissue_only=tissue_only,
            resume=True,
            regions=where_file or _regions(opened.viewer, where),
            clean_up=cleaned,
            probabilities=probabilities,
            adapt_stain=adapt_stain,
            geojson=out.with_name(f"{stem}.geojson") if regions else None,
            csv=out.with_name(f"{stem}.csv") if areas else None,
        )

    opened.attempt(start)


def _dock(title: str, make: Callable[[], Any]) -> None:
    """Show a form beside the panel, in place of one that is open already."""
    opened = panel()
    window = opened.viewer.window
    if title in window.dock_widgets:
        window.remove_dock_widget(window.dock_widgets[title].native)
    made = make()
    window.add_dock_widget(made, name=title, area="right")
    beside, dock = opened.parentWidget(), made.native.parentWidget()
    narrow = opened.screen().availableGeometry().width() < SMALL_SCREEN
    if narrow and isinstance(beside, QDockWidget) and isinstance(dock, QDockWidget):
        opened.window().tabifyDockWidget(beside, dock)  # a third column would leave the slide no room
        QTimer.singleShot(0, dock.raise_)  # napari shows it in a moment
