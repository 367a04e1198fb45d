"""Model files: one ``.safetensors`` with the weights, and `ModelMetadata` as JSON in its header.

Model files are passed between people, so nothing in one is trusted: there is no pickle, safetensors checks that every
tensor has its bytes in the file, and a network is first described on torch's ``meta`` device, where it takes no memory,
and compared with the tensors that the file holds. Reading the metadata imports no torch.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, get_args

from napari_sparseseg.config import ClassDef, TrainConfig, make_classes
from napari_sparseseg.errors import ModelError, SparseSegError
from napari_sparseseg.learning.stains import are_patches

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from napari_sparseseg.learning.network import PlainUNet, TwoSpeedNet
    from napari_sparseseg.learning.sources import Source

Edges = Literal["mirrored", "background"]
FORMAT = "napari-sparseseg model"
VERSION = 1
MAX_HEADER = 8 * 2**20
MAX_CHANNELS = 256
MAX_TEXT = 1000
UNKNOWN_EDGES = (
    "the model was saved by an earlier version, which did not record how it reads beyond a slide's edges: near them it "
    "may predict differently from then. Training it on records it."
)
_RULES: dict[str, tuple[object, ...]] = {"edges": (*get_args(Edges), None), "normalisation": (1,), "tissue": (1, 2)}
"""The rules that this version predicts by."""
_MAX_STEPS = 1 << 53
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_MAX_WIDTH = 1024
_MAX_DEPTH = 8
_MAX_DERIVED = 64 << 20
"""Bytes of what a network computes for itself and no file holds, such as tables of relative positions."""


@dataclass(frozen=True, slots=True)
class PredictionRules:
    """How pixels are prepared for the network and what is predicted, so that a model predicts later as it does now.

    A change of what a model predicts outside its network gets another value here, and the earlier one stays supported,
    or is refused by `read_metadata`.
    """

    edges: Edges | None = "mirrored"
    """What the network sees beyond the slide's edges. None: the model was saved before this was recorded, when both
    were in use; see `legacy`."""
    normalisation: int = 1
    """1: linear from the input scale's low and high to 0..1, cut at -0.5 and 1.5; NaN is 0."""
    tissue: int = 2
    """Version of `prediction.tissue.where_to_predict`, by which whole slides leave out glass. 1: a lumen may be glass;
    models saved before this was recorded are of 1."""

    @property
    def note(self) -> str:
        """For the user: what the model may predict differently from when it was saved; else empty."""
        return "" if self.edges is not None else UNKNOWN_EDGES

    @property
    def mirrored(self) -> bool:
        """Whether the slide is mirrored beyond its edges; else the network sees background there."""
        return self.edges != "background"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's classes, input and origin; stored as JSON under the key ``recipe`` of the model file's header."""

    classes: tuple[ClassDef, ...]
    """In channel order: channel k of the logits is ``classes[k]``."""
    mpp: float | None
    """Resolution the model was trained at, um per pixel; None: level-0 pixels of slides without mpp."""
    encoder: str
    channels: tuple[str, ...] = ("R", "G", "B")
    dtype: str = "uint8"
    config: TrainConfig = field(default_factory=TrainConfig)
    metrics: dict[str, Any] = field(default_factory=dict)
    sources: tuple[dict[str, Any], ...] = ()
    """Per slide: name, fingerprint, annotation version, number of strokes."""
    step: int = 0
    rules: PredictionRules = field(default_factory=PredictionRules)
    tissue: tuple[tuple[float, ...], ...] = ()
    """What patches of the training slides are like, see `stains`; empty: not known, or not brightfield."""
    extra: dict[str, Any] = field(default_factory=dict)
    """``net`` and ``input``, from which the network is rebuilt; ``memory``; ``versions`` of the libraries."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        classes: Sequence[ClassDef],
        config: TrainConfig,
        metrics: dict[str, Any],
        step: int,
    ) -> ModelMetadata:
        """Of a model trained on these sources."""
        first = sources[0]
        mpp = first.slide.mpp
        described = tuple(
            {
                "name": PurePath(s.slide.path).name,
                "fingerprint": s.slide.fingerprint,
                "annotations": s.labels.version,
                "strokes": len(s.labels.strokes),
            }
            for s in sources
        )
        return cls(
            classes=tuple(classes),
            mpp=None if mpp is None else mpp[0] * first.frame.downsample[0],
            encoder=config.encoder,
            channels=tuple(first.slide.channels),
            dtype=str(first.slide.dtype),
            config=config,
            metrics=metrics,
            sources=described,
            step=step,
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelMetadata:
        """Read what `to_json` wrote; unknown keys of newer versions are ignored.

        Raises
        ------
        SparseSegError
            Where a value is missing or of the wrong kind.
        """
        try:
            known = {f.name for f in fields(cls)}
            values = {k: v for k, v in data.items() if k in known}
            values["classes"] = make_classes(ClassDef(**c) for c in data["classes"])
            config_names = {f.name for f in fields(TrainConfig)}
            config = {k: v for k, v in dict(data.get("config", {})).items() if k in config_names}
            values["config"] = TrainConfig(**config)
            values["channels"] = tuple(data.get("channels", ("R", "G", "B")))
            values["sources"] = tuple(data.get("sources", ()))
            values["tissue"] = tuple(map(tuple, data.get("tissue", ())))
            values["rules"] = PredictionRules(**data["rules"]) if "rules" in data else PredictionRules(None, 1, 1)
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise SparseSegError(f"the model's metadata cannot be read: {type(error).__name__} {error}.") from error


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read a model file's metadata: classes, resolution, encoder, training.

    Raises
    ------
    ModelError
        When the file cannot be read, was not written by this program, is damaged, or is too new.
    """
    stored, _ = read_header(path)
    if stored.get("format") != FORMAT:
        raise ModelError(f"{path} holds weights but no {FORMAT}; choose a file that this program saved.")
    version = str(stored.get("version"))
    if not version.isdecimal() or int(version) > VERSION:
        raise ModelError(f"{path} has model version {version}; this program reads up to {VERSION}. Update it.")
    try:
        metadata = ModelMetadata.from_json(json.loads(stored["recipe"]))
    except (KeyError, ValueError, TypeError, RecursionError, AttributeError, SparseSegError) as error:
        raise ModelError(
            f"the metadata in {path} cannot be read: {error}. The file is damaged; use another copy."
        ) from error
    require_metadata(metadata, path)
    return metadata


def require_metadata(metadata: ModelMetadata, path: str | os.PathLike[str]) -> None:
    """Check what other code relies on; `path` is for messages.

    Raises
    ------
    ModelError
        For values that no model has, and rules that this version does not know.
    """
    if not metadata.classes or not 1 <= len(metadata.channels) <= MAX_CHANNELS:
        raise ModelError(f"the metadata in {path} name {len(metadata.classes)} classes; use another copy of the file.")
    for rule in fields(PredictionRules):
        if (value := getattr(metadata.rules, rule.name)) not in _RULES[rule.name]:
            raise ModelError(
                f"{path} predicts by the rule {rule.name} {str(value)[:50]!r}, which this version does not know. Use "
                "the version that it was saved with, or a newer one."
            )
    wrong = [name for name, fits in _fitting_kinds(metadata) if not fits]
    if wrong:
        value = repr(getattr(metadata, wrong[0]))[:100]
        raise ModelError(f"the metadata in {path} have {wrong[0]} {value}; the file is damaged, use another copy.")


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model file; raises what `read_header` raises."""
    return read_header(path)[1]


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata and the tensors' shapes of a ``.safetensors`` file.

    Raises
    ------
    ModelError
        When the file cannot be read, is a pickle, or is not a whole ``.safetensors`` file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block for ever
            raise ModelError(f"model {path} is not an ordinary file. Choose a model file.")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(_PICKLES):
            raise ModelError(
                f"{path} is a pickle or zip archive, as torch.save writes it; such files can run code and are not "
                "loaded. Save the model as .safetensors."
            )
        # safetensors itself allows headers of 100 MB, which take a gigabyte as Python objects.
        if len(start) < 8 or not 2 <= struct.unpack("<Q", start)[0] <= min(MAX_HEADER, size - 8):
            found = f"{size} bytes, beginning with {start!r}" if size else "it is empty"
            raise ModelError(f"{path} is not a .safetensors file: {found}. Choose a model file.")
        with safe_open(path, framework="numpy") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return dict(opened.metadata() or {}), shapes
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror or error}. Check the path.") from error
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is damaged or cut short: {reason}. Use another copy of the file.") from error


def _fitting_kinds(metadata: ModelMetadata) -> list[tuple[str, bool]]:
    """Each field that other code relies on, and whether its value is of the right kind."""
    mpp, step, extra = metadata.mpp, metadata.step, metadata.extra
    score = metadata.metrics.get("balanced_dice") if isinstance(metadata.metrics, dict) else ""
    return [
        ("mpp", mpp is None or (_is_number(mpp) and 0.01 <= mpp <= 1000)),
        ("step", type(step) is int and 0 <= step < _MAX_STEPS),
        ("encoder", _is_text(metadata.encoder)),
        ("channels", all(map(_is_text, metadata.channels))),
        ("dtype", _is_text(metadata.dtype)),
        ("metrics", score is None or _is_number(score)),
        ("sources", all(isinstance(s, dict) for s in metadata.sources)),
        ("tissue", are_patches(metadata.tissue)),
        ("extra", isinstance(extra, dict) and isinstance(extra.get("versions", {}), dict)),
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def describe(net: TwoSpeedNet | PlainUNet) -> dict[str, Any]:
    """The plain values that `rebuild` needs beside classes and channels."""
    from napari_sparseseg.learning.network import PlainUNet

    if isinstance(net, PlainUNet):
        return {"kind": "scratch", "norm": "channels", "width": net.scores.in_channels, "depth": net.depth}
    return {
        "kind": "pretrained",
        "architecture": net.features.encoder.architecture,
        "arguments": net.features.encoder.arguments,
        "context": net.features.context,
        "hidden": net.head.scores.in_channels,
        "decoder": [] if net.decoder is None else net.decoder.widths,
        "tuned": net.decoder is not None and net.decoder.tuned is not None,
        "share": net.share,
        "temperature": net.temperature,
    }


def rebuild(metadata: ModelMetadata, shapes: Mapping[str, tuple[int, ...]]) -> TwoSpeedNet | PlainUNet:
    """The network that the metadata describes, with random weights, in eval mode; never downloads anything.

    Parameters
    ----------
    metadata
        Of the file.
    shapes
        Of the network's tensors in the file; a network with other tensors is not built.

    Raises
    ------
    ModelError
        For values that no network of this program has.
    ValueError
        Where the shapes differ.
    Exception
        Whatever a constructor raises for missing or wrong values.
    """
    import torch

    with torch.device("meta"):
        plan = _build(metadata)
    wanted = {name: tuple(value.shape) for name, value in plan.state_dict().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise ValueError(f"{name} is {shapes.get(name, 'missing')}, not {wanted.get(name, 'part of the network')}")
    derived = sum(b.numel() * b.element_size() for name, b in plan.named_buffers() if name not in wanted)
    if derived > _MAX_DERIVED:
        raise ValueError(f"the network takes {derived} bytes beside its weights")
    return _build(metadata).eval()


def _build(metadata: ModelMetadata) -> TwoSpeedNet | PlainUNet:
    from napari_sparseseg.learning.encoders import Encoder
    from napari_sparseseg.learning.features import FeatureMaps
    from napari_sparseseg.learning.head import Head
    from napari_sparseseg.learning.network import Decoder, PlainUNet, TwoSpeedNet

    net = dict(metadata.extra["net"])
    classes, channels = len(metadata.classes), len(metadata.channels)
    if net["kind"] == "scratch":
        if net.get("norm") != "channels":
            raise ModelError("the model is a plain U-Net with batch normalisation, of an older version; train again.")
        return PlainUNet(channels, classes, _bounded(net, "width"), _bounded(net, "depth", _MAX_DEPTH))
    if net["kind"] != "pretrained":
        raise ModelError(f"the model is of kind {net['kind']!r}, which this version does not know; update the program.")
    # By architecture, never by address: a model file must not make this program download anything.
    architecture = str(net["architecture"]).partition("@")[0]
    if ":" in architecture or "/" in architecture:
        raise ModelError(f"the model names the encoder {architecture!r}, which is an address and not a timm name.")
    arguments, context = dict(net.get("arguments", {})), _bounded(net, "context", 15)

    def features() -> FeatureMaps:
        return FeatureMaps(Encoder(architecture, channels, load=False, arguments=arguments), context)

    frozen = features()
    head = Head(frozen.channels, _bounded(net, "hidden"), classes)
    widths = [_bounded({"decoder": w}, "decoder") for w in net["decoder"]]
    decoder = Decoder(frozen.channels, frozen.strides, widths, classes) if widths else None
    if decoder is not None and net.get("tuned"):
        decoder.tuned = features()
    share = float(net["share"])
    if not 0 <= share <= 1:
        raise ModelError(f"the model's decoder share {share} is not in 0..1; the file is damaged.")
    temperature = float(net.get("temperature", 1.0))  # 1: models of before it was measured
    if not 0.1 <= temperature <= 10:
        raise ModelError(f"the model's temperature {temperature} is not in 0.1..10; the file is damaged.")
    return TwoSpeedNet(frozen, head, decoder, share, temperature)


def _bounded(values: dict[str, Any], name: str, most: int = _MAX_WIDTH) -> int:
    value = int(values[name])
    if not 1 <= value <= most:
        raise ModelError(f"the model's {name} {value} is not in 1..{most}; the file is damaged.")
    return value
