"""Models for other programs: ONNX, and the bioimage.io package around it.

What is exported is what predicts here: raw pixel values in, class probabilities out, scale of the input and both
networks inside. It is written only after onnxruntime gave the same as torch at two sizes other than the traced one.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from napari_sparseseg import __version__
from napari_sparseseg.errors import ModelError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.learning.model import Model

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.onnx_model import OnnxModel

OPSET = 17
TOLERANCE = 1e-3
"""Largest difference of a probability between onnxruntime and torch."""
_MODULES = {"onnx": ("onnx", "onnxruntime"), "bioimageio": ("onnx", "onnxruntime", "bioimageio.spec")}


def export_model(model: Model | OnnxModel, path: str | os.PathLike[str]) -> Path:
    """Write a model as ``.onnx`` or as a bioimage.io package ``.zip``, atomically.

    The ONNX file takes float32 (batch, channel, height, width) with sides that are multiples of `Model.size_divisor`,
    and gives probabilities (batch, class, height, width). Classes, resolution, multiple and halo are in its metadata.

    Raises
    ------
    ModelError
        For another ending, for a model that came from such a file, where an extra is not installed, where the network
        cannot be exported with a dynamic size, and where the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".zip"):
        raise ModelError(f"{path} ends neither in .onnx nor in .zip (a bioimage.io package); choose one of them.")
    kind = "onnx" if path.suffix == ".onnx" else "bioimageio"
    try:
        for name in _MODULES[kind]:
            import_module(name)
    except ImportError as error:
        raise ModelError(
            f"{path.suffix} needs {error.name}; run: pip install 'napari-sparseseg[{kind}]', then export again."
        ) from error
    if not isinstance(model, Model):
        raise ModelError("the model is from another program's ONNX file, which is what an export would be; copy that.")
    net = Standalone(model)

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="sparseseg-export-") as folder:
            weights = Path(folder, "model.onnx")
            _write_onnx(net, model, weights)
            _check(net, model, weights)
            if kind == "onnx":
                temporary.write_bytes(weights.read_bytes())
            else:
                _write_package(net, model, weights, temporary)

    try:
        write_atomic(path, write)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}. Choose another folder.") from error
    return path


class Standalone(nn.Module):
    """Raw pixel values (B, C, H, W) to probabilities (B, K, H, W), on the CPU."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = copy.deepcopy(model.net).cpu().to(memory_format=torch.contiguous_format).eval()
        low, span = _scale(model.scale)
        self.register_buffer("low", low)
        self.register_buffer("span", span)
        self.low: torch.Tensor
        self.span: torch.Tensor
        # Itself too: the exporter puts everything below back into the mode that it found at the top.
        self.requires_grad_(False).eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See `Model.probabilities`."""
        known = torch.where(torch.isnan(image), torch.zeros_like(image), image)
        probabilities: torch.Tensor = self.net(((known - self.low) / self.span).clamp(-0.5, 1.5))
        return probabilities


def _scale(scale: InputScale) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.tensor(scale.low, dtype=torch.float32).view(1, -1, 1, 1)
    return low, torch.tensor(scale.high, dtype=torch.float32).view(1, -1, 1, 1) - low


def _write_onnx(net: Standalone, model: Model, path: Path) -> None:
    """Trace and write; the metadata explains inputs and outputs."""
    import onnx

    sizes = {0: "batch", 2: "height", 3: "width"}
    side = 8 * model.size_divisor
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: sizes are checked against torch below
            # The tracing exporter: that by torch.export took over a minute for the same network, against two seconds.
            torch.onnx.export(
                net,
                (torch.from_numpy(_example(model, 2, side, side + model.size_divisor)),),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["probabilities"],
                dynamic_axes={"image": sizes, "probabilities": sizes},
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ModelError(
            f"the network on encoder {model.metadata.encoder!r} cannot be exported to ONNX: {reason}."
        ) from error
    written = onnx.load(path)
    written.producer_name, written.producer_version = "napari-sparseseg", __version__
    metadata = model.metadata.to_json()
    facts = {
        "classes": [c["name"] for c in metadata["classes"]],
        "class_ids": [c["id"] for c in metadata["classes"]],
        "colours": [c["colour"] for c in metadata["classes"]],
        "channels": metadata["channels"],
        "mpp": metadata["mpp"],
        "multiple": model.size_divisor,
        "halo": model.halo,
        "rules": metadata["rules"],
    }
    for key, value in facts.items():
        written.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(written)
    onnx.save(written, path)


def _check(net: Standalone, model: Model, path: Path) -> None:
    """Compare with torch at two sizes and batches other than the traced ones.

    Raises
    ------
    ModelError
        When they differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, rows, columns in ((1, 5, 12), (3, 16, 4)):
        image = _example(model, batch, rows * model.size_divisor, columns * model.size_divisor)
        with torch.no_grad():
            expected = net(torch.from_numpy(image)).numpy()
        try:
            found = session.run(None, {"image": image})[0]
        except RuntimeError as error:  # onnxruntime's own errors are RuntimeErrors
            raise ModelError(_fixed_size(model, str(error).split("\n")[0][:200])) from error
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise ModelError(_fixed_size(model, "onnxruntime gives other probabilities than torch"))


def _fixed_size(model: Model, reason: str) -> str:
    return (
        f"the network on encoder {model.metadata.encoder!r} cannot be exported for images of any size ({reason}); "
        "train with a convolutional encoder, such as the default one."
    )


def _example(model: Model, batch: int, height: int, width: int) -> NDArray[np.float32]:
    """Synthetic patches within the input scale, smooth so that the encoder responds as to tissue."""
    rng = np.random.default_rng(0)
    low, high = (np.array(v, np.float32)[:, None, None] for v in (model.scale.low, model.scale.high))
    coarse = rng.random((batch, len(low), -(-height // 16), -(-width // 16)), np.float32)
    smooth = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    noisy = 0.8 * smooth + 0.2 * rng.random(smooth.shape, np.float32)
    values: NDArray[np.float32] = (low + (high - low) * noisy).astype(np.float32)
    return np.round(values) if np.issubdtype(np.dtype(model.metadata.dtype), np.integer) else values


def _write_package(net: Standalone, model: Model, weights: Path, target: Path) -> None:
    """The package of spec 0.5: description, weights, and a pair of test tensors."""
    import bioimageio.spec.model.v0_5 as spec
    from bioimageio.spec import ValidationContext, save_bioimageio_package
    from bioimageio.spec.common import FileDescr

    least = -(-(2 * model.halo + model.size_divisor) // model.size_divisor) * model.size_divisor
    image = _example(model, 1, least, least + model.size_divisor)
    with torch.no_grad():
        probabilities = net(torch.from_numpy(image)).numpy()
    folder = weights.parent
    np.save(folder / "input.npy", image.astype(model.metadata.dtype))
    np.save(folder / "output.npy", probabilities)
    (folder / "README.md").write_text(_readme(model), encoding="utf-8")
    with ValidationContext(perform_io_checks=True, root=folder):
        description = spec.ModelDescr(
            name=_title(model),
            description=f"Scribble-trained segmentation into {len(model.metadata.classes)} classes.",
            documentation=FileDescr(source=folder / "README.md"),
            tags=["segmentation", "sparse-annotation", "whole-slide-image", "napari-sparseseg"],
            inputs=[_input(spec, model, least, FileDescr(source=folder / "input.npy"))],
            outputs=[_output(spec, model, FileDescr(source=folder / "output.npy"))],
            weights=spec.WeightsDescr(onnx=spec.OnnxWeightsDescr(source=weights, opset_version=OPSET)),
        )
        save_bioimageio_package(description, output_path=target)


def _input(spec: Any, model: Model, least: int, test_tensor: Any) -> Any:
    metadata = model.metadata
    size = spec.ParameterizedSize(min=least, step=model.size_divisor)
    place = _scaled(metadata.mpp)
    return spec.InputTensorDescr(
        id="image",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=_identifiers(metadata.channels)),
            spec.SpaceInputAxis(id="y", size=size, **place),
            spec.SpaceInputAxis(id="x", size=size, **place),
        ],
        test_tensor=test_tensor,
        data=spec.IntervalOrRatioDataDescr(type=metadata.dtype),
        preprocessing=[spec.EnsureDtypeDescr(kwargs=spec.EnsureDtypeKwargs(dtype="float32"))],
    )


def _output(spec: Any, model: Model, test_tensor: Any) -> Any:
    place = _scaled(model.metadata.mpp)
    sides = [
        spec.SpaceOutputAxisWithHalo(
            id=axis, halo=model.halo, size=spec.SizeReference(tensor_id="image", axis_id=axis), **place
        )
        for axis in ("y", "x")
    ]
    names = [c.name for c in model.metadata.classes]
    return spec.OutputTensorDescr(
        id="probabilities",
        description=("Probability per class: " + ", ".join(names))[:128],
        axes=[spec.BatchAxis(), spec.ChannelAxis(channel_names=_identifiers(names)), *sides],
        test_tensor=test_tensor,
        data=spec.IntervalOrRatioDataDescr(type="float32", range=(0.0, 1.0)),
    )


def _scaled(mpp: float | None) -> dict[str, Any]:
    return {} if mpp is None else {"scale": mpp, "unit": "micrometer"}


def _identifiers(names: Any) -> list[str]:
    """Names as the specification allows them: letters, digits and underscores, each one once."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", str(name), flags=re.ASCII).strip("_").lower() or "class"
        base = f"n{base}" if base[0].isdigit() else base
        found.append(base if base not in found else f"{base}_{len(found)}")
    return found


def _title(model: Model) -> str:
    # The specification allows letters, digits, "_+- ()" and nothing else.
    names = re.sub(r"[^\w +()\-]", " ", " + ".join(c.name for c in model.metadata.classes), flags=re.ASCII)
    return " ".join(f"napari-sparseseg {names}".split())[:96]


def _readme(model: Model) -> str:
    metadata = model.metadata
    mpp = "level-0 pixels" if metadata.mpp is None else f"{metadata.mpp:g} um per pixel"
    classes = "\n".join(f"- channel {k}: {c.name} ({c.colour})" for k, c in enumerate(metadata.classes))
    return (
        f"# {_title(model)}\n\nTrained with napari-sparseseg {__version__} on scribbles in {len(metadata.sources)} "
        f"slide(s) at {mpp}, {metadata.config.balancing} balancing, encoder {metadata.encoder}, "
        f"{metadata.step} steps.\n\n"
        f"## Input\n\nRaw pixel values; height and width multiples of {model.size_divisor}. The outer "
        f"{model.halo} px of a tile depend on where it ends.\n\n"
        f"## Output\n\n{classes}\n\n## Validation\n\nScores on held-out strokes:\n\n"
        f"```json\n{json.dumps(metadata.metrics, indent=1, default=str)}\n```\n"
    )
