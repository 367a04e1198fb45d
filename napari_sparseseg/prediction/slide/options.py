"""Settings, progress and result of a whole-slide prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from napari_sparseseg.errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from napari_sparseseg.io.measurements import AreaRow
    from napari_sparseseg.prediction.results.cleanup import CleanUp
    from napari_sparseseg.prediction.results.regions import Regions
    from napari_sparseseg.prediction.stain import StainCheck

Stage = Literal["predict", "pyramid", "measure", "write", "clean"]
# (start, share) of each stage in one progress bar over all of them: a network on a CPU takes roughly so long. See D30.
_SHARE: dict[Stage, tuple[float, float]] = {
    "predict": (0.0, 0.92),
    "pyramid": (0.92, 0.03),
    "measure": (0.95, 0.04),
    "write": (0.99, 0.01),
    "clean": (0.0, 1.0),
}


class PredictSettings(TypedDict, total=False):
    """The fields of `PredictOptions` as keyword arguments."""

    mpp: float | None
    geojson: Path | None
    csv: Path | None
    uncertainty: bool
    probabilities: bool
    clean_up: CleanUp | None
    tissue_only: bool
    resume: bool
    workers: int | None
    memory_gb: float | None
    scheduler: str | None
    overwrite: bool
    min_area_um2: float
    regions: Regions | Sequence[tuple[int, int, int, int]] | str | PathLike[str] | None
    beyond_regions: bool
    flips: bool
    ome_zarr: Literal["0.4", "0.5"]
    tile: int | None
    adapt_stain: bool


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """Settings of a whole-slide prediction.

    Raises
    ------
    PredictionError
        For a value outside its range.

    Examples
    --------
    >>> options = PredictOptions(mpp=1.0, workers=2)
    >>> options.min_area_um2
    100.0
    """

    mpp: float | None = None
    """Resolution of the label image in um per pixel; None: the model's own. The model always sees the slide at the
    resolution it was trained at, where that is known; its probabilities are averaged or interpolated."""
    geojson: Path | None = None
    """File to write objects to, for QuPath, in level-0 (x, y)."""
    csv: Path | None = None
    """File to write pixels, mm2, percent and objects per class and region to."""
    uncertainty: bool = False
    """Save the entropy (0 certain .. 255) as a second image."""
    probabilities: bool = False
    """Save the probability of each class (0..255) as channels of an image; implied where `clean_up` marks what is
    unsure."""
    clean_up: CleanUp | None = None
    """Also save a cleaned label image, beside what was predicted; tables and objects are then those of that."""
    tissue_only: bool = True
    """Predict only where a thumbnail shows tissue. Glass gets the class named ``background``, ``glass`` or similar
    (`tissue.GLASS_NAMES`); without such a class it is 0, unlabelled, and has its own row in the table. Small slides,
    and those where glass and tissue cannot be told apart, are predicted whole."""
    resume: bool = False
    """Continue an interrupted run of the same slide, model and settings; any other unfinished run is discarded. Where
    the output is complete, only missing tables are written."""
    workers: int | None = None
    """Threads that predict; None: one a core while `memory_gb` has 1 GB for each; on a GPU 1."""
    memory_gb: float | None = None
    """What the threads may take together, in GB (1e9 bytes); None: a quarter of the free memory. It decides how many
    there are, at least one."""
    scheduler: str | None = None
    """Address of a dask.distributed scheduler, ``tcp://host:port``, whose workers predict instead of local threads."""
    overwrite: bool = False
    """Replace existing files."""
    min_area_um2: float = 100.0
    """Smaller objects are neither counted nor written; level-0 px^2 where the slide's mpp is unknown."""
    regions: Regions | Sequence[tuple[int, int, int, int]] | str | PathLike[str] | None = None
    """Where to predict, and what to measure apart: polygons in level-0 (x, y) by name, level-0 boxes, ``FILE`` or
    ``FILE:CLASS`` for the areas of an annotation file, or the name of a class whose areas in the slide's annotations
    are meant (``:CLASS`` where a file has that name too). Pixels outside stay 0, not predicted. None: everywhere."""
    beyond_regions: bool = False
    """Predict outside the regions too; they are then only measured."""
    flips: bool = False
    """Average over the eight flips and quarter turns of each tile: eight times slower."""
    ome_zarr: Literal["0.4", "0.5"] = "0.4"
    """0.4 is read by most programs; 0.5 is sharded and makes far fewer files."""
    tile: int | None = None
    """Side in pixels of what the network gets at once, without halo. None: the default network on a CPU goes in strips,
    without tiles; any other gets tiles that need little memory. 2048 spends less time on halos, and takes gigabytes."""

    adapt_stain: bool = False
    """Match the colours of the slide's tissue to those of the training slides, for this prediction. For slides of which
    the result says that stain or scanner differ; where they do not differ it is of no use."""

    def __post_init__(self) -> None:
        for name in ("geojson", "csv"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.clean_up is not None and self.clean_up.unsure_below:
            object.__setattr__(self, "probabilities", True)
        if self.workers is not None and self.workers < 1:
            raise PredictionError(f"workers is {self.workers}; give 1 or more, or leave it out.")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise PredictionError(f"the memory is {self.memory_gb} GB; give more than 0, or leave it out.")
        if self.ome_zarr not in ("0.4", "0.5"):
            raise PredictionError(f"OME-Zarr version {self.ome_zarr!r} is not one of 0.4, 0.5.")
        if not self.min_area_um2 >= 0:
            raise PredictionError(f"the minimum area is {self.min_area_um2} um^2; give 0 or more.")
        if self.tile is not None and self.tile < 64:
            raise PredictionError(f"tiles of {self.tile} px are too small; give 64 or more.")

    @property
    def tables(self) -> list[Path]:
        """Files to write beside the label image."""
        return [path for path in (self.geojson, self.csv) if path is not None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run."""

    stage: Stage
    done: int
    """Pixels in the stage ``predict``, blocks in the others."""
    total: int
    seconds: float
    """In this stage of this run."""
    megapixels_per_second: float = 0.0
    """Of the prediction resolution, in this run."""
    seconds_left: float | None = None
    """Of the stage; None while it cannot be estimated."""

    @property
    def fraction(self) -> float:
        """0..1 over all stages."""
        start, share = _SHARE[self.stage]
        return start + share * (self.done / self.total if self.total else 1.0)


@dataclass(frozen=True, slots=True)
class SlideResult:
    """Files and figures of a complete run."""

    slide: str
    """Path of the slide."""
    output: Path
    shape: tuple[int, int]
    """(h, w) of the label image."""
    mpp: tuple[float, float] | None
    """(y, x) of the label image."""
    table: list[AreaRow]
    geojson: Path | None = None
    csv: Path | None = None
    cleaned: Path | None = None
    """The cleaned label image inside the output, where one was asked for: `table` and objects are then of that."""
    objects: int = 0
    """Connected regions of at least the minimum area, all classes."""
    shards: int = 0
    shards_resumed: int = 0
    """Shards taken over from an interrupted run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage in this run; ``wait`` is how long the network waited for pixels and files during ``predict``."""
    megapixels_per_second: float = 0.0
    tissue_share: float | None = None
    """Share of the slide found to be tissue, where only tissue was predicted; 1 where that is all of it, see D103."""
    warnings: tuple[str, ...] = ()
    stain: StainCheck | None = None
    """How the slide compares with those the model was trained on; None where the model does not say."""

    @property
    def remarks(self) -> str:
        """For the user: what was left out, and whether stain or scanner are others than in training; or empty."""
        return "; ".join(filter(None, [self.skipped, self.stain.warning if self.stain is not None else ""]))

    @property
    def skipped(self) -> str:
        """For the user: how much was taken for glass and not predicted; empty where everything was predicted."""
        glass = 1.0 - (1.0 if self.tissue_share is None else self.tissue_share)
        return f"{glass:.0%} of the slide is glass and was not predicted" if glass >= 0.005 else ""

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold; paths become strings."""
        data = asdict(self)
        data["table"] = [asdict(row) for row in self.table]
        for name in ("output", "cleaned", "geojson", "csv"):
            data[name] = None if data[name] is None else str(data[name])
        return data
