"""Classes and settings as plain, frozen values; no torch, so projects and the shell can read them at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from napari_sparseseg.errors import SparseSegError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Balancing = Literal["none", "instance", "mini-batch"]
Architecture = Literal["pretrained", "scratch"]
UNLABELLED = 0
MAX_CLASS_ID = 255
MAX_NAME = 500

# Okabe & Ito (2008): distinguishable with every common colour blindness. Their purple is eosin's own colour, their grey
# is for what is no tissue: both come last.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#999999", "#cc79a7")
GREY = PALETTE[6]
DEFAULT_ENCODER = "tf_efficientnet_lite0"
"""Bundled: it needs no download."""
_BOUNDS: dict[str, tuple[type, float, float]] = {
    "patch_px": (int, 8, 4096),
    "batch_size": (int, 1, 256),
    "min_pixels": (int, 1, 2**31),
    "dense_fraction": (float, 0, 1),
    "area_power": (float, 0, 1),
    "learning_rate": (float, 1e-9, 10),
    "seed": (int, 0, 2**32 - 1),
}
"""Kind and range of the numbers in a `TrainConfig`: settings come from project files, which come from anywhere."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True)
class ClassDef:
    """A tissue class: id 1..255 (0 means unlabelled everywhere), a name, a colour ``#rrggbb``."""

    id: int
    name: str
    colour: str

    def __post_init__(self) -> None:
        if type(self.id) in (bool, float) or not 1 <= self.id <= MAX_CLASS_ID:
            raise SparseSegError(f"class id {self.id} of {self.name!r} is not in 1..255; 0 means unlabelled.")
        if not self.name.strip():
            raise SparseSegError(f"class {self.id} has no name; give it one.")
        if len(self.name) > MAX_NAME or any("\ud800" <= c <= "\udfff" for c in self.name):
            raise SparseSegError(
                f"the name of class {self.id} is longer than {MAX_NAME} characters or cannot be written."
            )
        if not _COLOUR.fullmatch(self.colour):
            raise SparseSegError(f"colour {self.colour!r} of class {self.name!r} is not #rrggbb.")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0..255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


def make_classes(classes: Iterable[ClassDef | tuple[str, str] | str]) -> tuple[ClassDef, ...]:
    """Class table from names, (name, colour) pairs or `ClassDef`s; ids count from 1 where they are not given.

    Raises
    ------
    SparseSegError
        For a repeated id or name, or a value that is no class.
    """
    out: list[ClassDef] = []
    for item in classes:
        if isinstance(item, ClassDef):
            out.append(item)
            continue
        name, colour = (item, "") if isinstance(item, str) else item
        new_id = max((c.id for c in out), default=0) + 1
        out.append(ClassDef(new_id, name, colour or PALETTE[(new_id - 1) % len(PALETTE)]))
    if len(out) > MAX_CLASS_ID:
        raise SparseSegError(f"there are {len(out)} classes; {MAX_CLASS_ID} are possible.")
    for what, values in (("id", [str(c.id) for c in out]), ("name", [c.name for c in out])):
        repeated = {v for v in values if values.count(v) > 1}
        if repeated:
            raise SparseSegError(f"class {what} used twice: {', '.join(sorted(repeated))}; make them distinct.")
    return tuple(out)


DEFAULT_CLASSES = make_classes([("tissue", PALETTE[0]), ("background", GREY)])


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train; the defaults come from ``tests/benchmarks``.

    Raises
    ------
    SparseSegError
        For a value outside its range.

    Examples
    --------
    >>> from napari_sparseseg import TrainConfig
    >>> config = TrainConfig(balancing="mini-batch", mpp=2.0)
    >>> config.updated({"seed": 1}).mpp
    2.0
    """

    balancing: Balancing = "instance"
    """How labelled pixels are weighted, see `balancing`; the defaults here and below are those of D10 and D11."""
    mpp: float | None = None
    """Training resolution in um per pixel. None: 1.0, or the slide's own where that is coarser; one level-0 pixel where
    the slide's mpp is unknown."""
    architecture: Architecture = "pretrained"
    """``pretrained``: the two-speed learner on a pretrained encoder; ``scratch``: the plain U-Net of the paper."""
    encoder: str = DEFAULT_ENCODER
    """timm name, ``hf-hub:OWNER/NAME``, or ``NAME@FILE``."""
    patch_px: int = 192
    """Side of a patch in pixels at the training resolution."""
    batch_size: int = 4
    """Patches whose balanced loss makes one step."""
    min_pixels: int = 1
    """Floor under the pixel count of a class in the balanced loss."""
    dense_fraction: float = 0.25
    """Share of the patches of a batch that is drawn from dense regions, where there are any."""
    area_power: float = 0.0
    """A stroke is drawn from in proportion to its area to this power: 0 all alike; 0.5 for strokes of very different
    size."""
    learning_rate: float = 1e-3
    """Full rate, constant after a short warm-up; the model served has averaged weights."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.balancing not in get_args(Balancing):
            raise SparseSegError(f"balancing {self.balancing!r} is not one of {', '.join(get_args(Balancing))}.")
        if self.architecture not in get_args(Architecture):
            raise SparseSegError(
                f"architecture {self.architecture!r} is not one of {', '.join(get_args(Architecture))}."
            )
        if self.mpp is not None and not 0.01 <= self.mpp <= 1000:
            raise SparseSegError(f"mpp {self.mpp} is not a resolution in um per pixel (0.01 to 1000).")
        if not isinstance(self.encoder, str):
            raise SparseSegError(f"encoder {self.encoder!r} is not a name.")
        for name, (kind, low, high) in _BOUNDS.items():
            value = getattr(self, name)
            fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                what = "a number" if kind is float else "a whole number"
                raise SparseSegError(f"{name} {value!r} is not {what} from {low:g} to {high:g}.")
        if self.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise SparseSegError(f"device {self.device!r} is not one of auto, cpu, cuda, mps.")

    @property
    def fetches(self) -> bool:
        """Whether an encoder is needed that is not bundled: from the network, or from a file."""
        return self.architecture == "pretrained" and self.encoder != DEFAULT_ENCODER

    @property
    def downloads(self) -> bool:
        """Whether the network may be asked for the encoder: for its weights, its description, or a file on a share."""
        base, _, file = self.encoder.partition("@")
        return self.fetches and (not file or ":" in base or file.startswith(("//", "\\\\")))

    def updated(self, settings: Mapping[str, Any]) -> TrainConfig:
        """A copy with other values.

        Raises
        ------
        TrainingError
            For a setting that does not exist; `SparseSegError` for a value that does not fit.
        """
        known = {f.name for f in fields(self)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TrainingError(f"unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}.")
        return replace(self, **settings)


class TrainSettings(TypedDict, total=False):
    """The fields of `TrainConfig` as keywords; ``balancing`` is an argument of its own wherever these are taken."""

    mpp: float | None
    architecture: Architecture
    encoder: str
    patch_px: int
    batch_size: int
    min_pixels: int
    dense_fraction: float
    area_power: float
    learning_rate: float
    seed: int
    device: str


def class_ids(classes: Sequence[ClassDef]) -> tuple[int, ...]:
    """The ids in table order."""
    return tuple(c.id for c in classes)


def match_classes(
    ours: Sequence[ClassDef], theirs: Sequence[ClassDef]
) -> tuple[tuple[ClassDef, ...], tuple[ClassDef, ...]]:
    """The joint table of ours and a model's classes, and theirs with our ids; matched by name in any letter case.

    A class that is new to us gets another colour where ours have its own already, while the palette has one.
    """
    if not ours:
        return tuple(theirs), tuple(theirs)
    table = list(ours)
    channels = []
    for c in theirs:
        known = next((o for o in table if o.name.casefold() == c.name.casefold()), None)
        if known is None:
            free = next((i for i in range(1, 256) if i not in {o.id for o in table}), None)
            if free is None:
                raise SparseSegError("the model's classes do not fit: there are 255 classes already.")
            taken = {o.colour.lower() for o in table}
            unused = (colour for colour in (c.colour, *PALETTE) if colour.lower() not in taken)
            known = ClassDef(free, c.name, next(unused, c.colour))
            table.append(known)
        channels.append(known)
    return tuple(table), tuple(channels)
