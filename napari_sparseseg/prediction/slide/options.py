"""What can be asked of a whole-slide prediction, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_sparseseg.errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import shapely

    from napari_sparseseg.io.tables import AreaRow

Stage = Literal["predict", "pyramid", "measure", "write"]
# How much of a run's time each stage takes, for one bar over all of them; measured, roughly, with a network on a CPU.
_SHARE: dict[Stage, tuple[float, float]] = {
    "predict": (0.0, 0.92),
    "pyramid": (0.92, 0.03),
    "measure": (0.95, 0.04),
    "write": (0.99, 0.01),
}
OME_ZARR, OME_TIFF = (".ome.zarr",), (".ome.tif", ".ome.tiff")


@dataclass(frozen=True, slots=True)
class Options:
    """Keywords of `predict_slide`."""

    mpp: float | None = None
    """Resolution of the label image in um per pixel; the model's own if not given. The model itself always sees the
    slide at the resolution it was trained at, where it knows one; its answer is averaged or interpolated."""
    geojson: Path | None = None
    """Where to write objects for QuPath, in level-0 (x, y)."""
    csv: Path | None = None
    """Where to write pixels, mm2, percent and objects per class and region."""
    uncertainty: bool = False
    """Store the entropy (0 certain .. 255) as a second image."""
    tissue_only: bool = True
    """Predict only where a thumbnail shows tissue. Glass is labelled with the class called ``background``, ``glass`` or
    alike (`tissue.GLASS_NAMES`), else it stays 0, unlabelled, and a row of its own in the table. Where no glass can be
    told from tissue, everything is predicted."""
    resume: bool = False
    """Go on where an earlier run of the same slide, model and parameters ended; any other run is thrown away. Where the
    output is complete already, only missing tables are written."""
    workers: int | None = None
    """Threads that predict; 1 if not given."""
    scheduler: str | None = None
    """Address of a dask.distributed scheduler, ``tcp://host:port``; its workers then predict instead of threads."""
    overwrite: bool = False
    """Replace existing files."""
    min_area_um2: float = 100.0
    """Smaller objects are neither counted nor written; level-0 px^2 where the slide's mpp is unknown."""
    regions: Mapping[str, shapely.Geometry] | None = None
    """Name to shapely polygon in level-0 (x, y), to be measured besides the whole slide."""
    flips: bool = False
    """Average over the eight flips and turns of each tile: eight times slower."""
    ome_zarr: Literal["0.4", "0.5"] = "0.4"
    """0.4 is what most readers know; 0.5 is sharded and makes far fewer files."""
    tile: int | None = None
    """Pixels a side that the network gets at once, without halo; chosen for little memory if not given. 2048 wastes
    less on halos where there are gigabytes to spare."""

    def __post_init__(self) -> None:
        for name in ("geojson", "csv"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.workers is not None and self.workers < 1:
            raise PredictionError(f"workers is {self.workers}; give 1 or more, or nothing to let the program choose.")
        if self.ome_zarr not in ("0.4", "0.5"):
            raise PredictionError(f"OME-Zarr version {self.ome_zarr!r} is not one of 0.4, 0.5.")
        if not self.min_area_um2 >= 0:
            raise PredictionError(f"the minimum area {self.min_area_um2} is not 0 or more um^2.")
        if self.tile is not None and self.tile < 64:
            raise PredictionError(f"tiles of {self.tile} px are too small; give 64 or more.")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    stage: Stage
    done: int
    """Pixels in the stage ``predict``, blocks in the others."""
    total: int
    seconds: float
    """In this stage of this run."""
    megapixels_per_second: float = 0.0
    """Of the prediction resolution, in this run."""
    seconds_left: float | None = None
    """Of the stage; None while nothing is known."""

    @property
    def fraction(self) -> float:
        """0..1 over all stages."""
        start, share = _SHARE[self.stage]
        return start + share * (self.done / self.total if self.total else 1.0)


@dataclass(frozen=True, slots=True)
class SlideResult:
    """What a run made."""

    output: Path
    shape: tuple[int, int]
    """(h, w) of the label image."""
    mpp: tuple[float, float] | None
    """(y, x) of the label image."""
    table: list[AreaRow]
    geojson: Path | None = None
    csv: Path | None = None
    objects: int = 0
    """Connected regions of at least the minimum area, all classes."""
    shards: int = 0
    shards_resumed: int = 0
    """Shards that an earlier run had done."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage in this run, and ``wait``: how long of ``predict`` the network waited for pixels and files."""
    megapixels_per_second: float = 0.0
    tissue_share: float | None = None
    """Part of the slide that was taken for tissue, where only tissue was predicted."""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values; paths as text."""
        data = asdict(self)
        data["table"] = [asdict(row) for row in self.table]
        for name in ("output", "geojson", "csv"):
            data[name] = None if data[name] is None else str(data[name])
        return data
