"""`Model`: an immutable segmenter for any thread, and its file. torch is imported only when a model is built."""

from __future__ import annotations

import dataclasses
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import ModelError, PredictionError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.learning.model_file import FORMAT, VERSION, read_metadata, read_shapes
from napari_sparseseg.learning.torch_runtime import autocast_dtype, choose_device, import_torch

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from napari_sparseseg.config import Architecture, ClassDef
    from napari_sparseseg.learning.feature_cache import LabelledFeatures
    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.model_file import ModelMetadata, PredictionRules
    from napari_sparseseg.learning.network import PlainUNet, TwoSpeedNet
    from napari_sparseseg.learning.onnx_model import OnnxModel
    from napari_sparseseg.learning.stains import StainMap
    from napari_sparseseg.learning.strips import ReadRows, Strip

logger = logging.getLogger(__name__)

__all__ = ["Model", "load_model", "read_metadata"]


class Model:
    """A fitted network with its metadata; immutable, so any thread may use it.

    Parameters
    ----------
    metadata
        Classes in channel order and everything else that is saved with the weights. `metadata.extra` is replaced by
        the values that the network is rebuilt from.
    net
        In eval mode and on its device; owned by the model from now on.
    scale
        Of the input.
    memory
        Features of labelled pixels of the slides it was trained on, see `learning.replay`.
    """

    trainable = True

    def __init__(
        self,
        metadata: ModelMetadata,
        net: TwoSpeedNet | PlainUNet,
        scale: InputScale,
        memory: Sequence[LabelledFeatures] = (),
    ) -> None:
        from napari_sparseseg.learning.model_file import describe

        self.metadata = dataclasses.replace(metadata, extra={"net": describe(net), "input": scale.to_json()})
        self.memory = tuple(memory)
        self.net, self.scale = net.eval().requires_grad_(False), scale
        self.halo, self.size_divisor = int(net.receptive_field), int(net.size_divisor)
        self.device: torch.device = next(net.parameters()).device

    def __repr__(self) -> str:
        return f"<Model {len(self.metadata.classes)} classes, step {self.metadata.step}, on {self.device}>"

    def probabilities(self, pixels: NDArray[Any], *, origin: tuple[int, int] = (0, 0)) -> NDArray[np.float32]:
        """Class probabilities of an image or tile.

        Parameters
        ----------
        pixels
            (h, w, C) at the training resolution, any dtype of the slides it was trained on. Values nearer than `halo`
            to a side depend on where the tile ends.
        origin
            (y, x) of the tile in its frame: tiles are aligned to absolute multiples of `size_divisor`, so the same
            pixel gets the same value from every tile.

        Returns
        -------
        float32 (K, h, w), K classes in the order of `metadata.classes`; sums to 1.

        Raises
        ------
        ModelError
            For another number of channels.
        PredictionError
            When the device has not enough memory for a tile of this size.
        """
        if pixels.ndim != 3:
            raise ModelError(f"pixels have shape {pixels.shape}; give (h, w, channels).")
        h, w, _ = pixels.shape
        top, left = origin[0] % self.size_divisor, origin[1] % self.size_divisor
        bottom, right = -(h + top) % self.size_divisor, -(w + left) % self.size_divisor
        if top or left or bottom or right:
            pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")
        values = self._run(pixels)
        return np.ascontiguousarray(values[:, top : top + h, left : left + w])

    @property
    def note(self) -> str:
        """For the user: what the model may predict differently from when it was saved; else empty."""
        return self.metadata.rules.note

    def strip(self, columns: tuple[int, int], read: ReadRows) -> Strip | None:
        """A strip of a slide that is followed downwards; None where this network, or its device, is better given tiles.

        Parameters
        ----------
        columns
            Of the result, in pixels of the training resolution.
        read
            Reads pixels.
        """
        from napari_sparseseg.learning.strips import Strip, fits_strips

        return Strip(self.net, self.scale, columns, read) if fits_strips(self.net) else None

    def with_rules(self, rules: PredictionRules) -> Model:
        """The same network, predicting by other rules."""
        return Model(dataclasses.replace(self.metadata, rules=rules), self.net, self.scale, self.memory)

    def with_stain(self, stain: StainMap) -> Model:
        """The same network, which sees slides with their colours matched."""
        return Model(self.metadata, self.net, dataclasses.replace(self.scale, stain=stain), self.memory)

    def with_classes(self, classes: Sequence[ClassDef]) -> Model:
        """The same network with other ids, names and colours for its channels, in channel order."""
        metadata = dataclasses.replace(self.metadata, classes=tuple(classes))
        return Model(metadata, self.net, self.scale, self.memory)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and metadata as one ``.safetensors`` file, atomically.

        Raises
        ------
        ModelError
            When the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        from napari_sparseseg.learning.replay import to_tensors

        remembered, slides = to_tensors(self.memory)
        described = self.metadata.to_json()
        described["extra"]["memory"] = slides
        described["extra"]["versions"] = {name: version(name) for name in ("napari-sparseseg", "torch", "timm")}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        tensors.update(remembered)
        header = {"format": FORMAT, "version": str(VERSION), "recipe": json.dumps(described)}
        try:
            write_atomic(Path(path), lambda temporary: save_file(tensors, temporary, metadata=header))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model {path} cannot be written: {error}. Choose another folder.") from error
        logger.info("wrote model %s after step %d", path, self.metadata.step)

    def _run(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        torch = import_torch()
        image = self.scale.unit(pixels[None]).to(self.device).contiguous(memory_format=torch.channels_last)
        dtype = autocast_dtype(self.device)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                result: NDArray[np.float32] = self.net(image)[0].float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            h, w = pixels.shape[:2]
            raise PredictionError(
                f"{self.device} has not enough memory for a tile of {h} x {w} px; use smaller tiles, or device cpu."
            ) from error
        return result


def load_model(path: str | os.PathLike[str], device: str = "auto") -> Model | OnnxModel:
    """Read a model file: ``.safetensors`` of this program, ``.onnx``, or a bioimage.io ``.zip`` with ONNX weights.

    Raises
    ------
    ModelError
        When the file cannot be read, is neither a model of this program nor one that can be run over slides, or its
        weights do not fit its metadata; and where the extra ``onnx`` is needed and not installed.
    TrainingError
        When the device is not there.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_sparseseg import Session, load_model
    >>> from napari_sparseseg.samples import sample_scribbles, sample_slide
    >>> with Session() as session:
    ...     slide = session.open(sample_slide())
    ...     added = session.import_annotations(sample_scribbles())
    ...     session.train(steps=1, mpp=8.0, wait=True)
    ...     session.save_model("sample.safetensors")
    >>> model = load_model("sample.safetensors", device="cpu")
    >>> model.probabilities(np.zeros((128, 192, 3), np.uint8)).shape
    (5, 128, 192)
    """
    from napari_sparseseg.learning.onnx_model import KIND, load_inside, load_onnx

    path = Path(path)
    if path.suffix.lower() in (".onnx", ".zip"):
        return load_onnx(path, device)
    metadata = read_metadata(path)
    net = metadata.extra.get("net")
    if isinstance(net, dict) and net.get("kind") == KIND:
        return load_inside(path, metadata, device)
    return _load_own(path, metadata, device)


def _load_own(path: Path, metadata: ModelMetadata, device: str) -> Model:
    """A model that this program trained; see `load_model`."""
    from safetensors.torch import load_file

    from napari_sparseseg.learning.features import InputScale
    from napari_sparseseg.learning.model_file import rebuild
    from napari_sparseseg.learning.network import PlainUNet
    from napari_sparseseg.learning.replay import PREFIX, from_tensors

    shapes = {name: shape for name, shape in read_shapes(path).items() if not name.startswith(PREFIX)}
    import_torch()
    target = choose_device(device)
    try:
        scale = InputScale.from_json(metadata.extra["input"])
        net = rebuild(metadata, shapes)
        tensors = load_file(path)
        columns = 0 if isinstance(net, PlainUNet) else sum(net.features.channels)
        memory = from_tensors(tensors, metadata.extra.get("memory", ()), columns)
        net.load_state_dict(tensors)
    except ModelError:
        raise
    except Exception as error:  # constructors of timm's networks raise anything for values they do not expect
        reason = " ".join(f"{error or type(error).__name__}".split())[:300].removesuffix(".")
        raise ModelError(
            f"the weights in {path} do not fit its metadata: {reason}. The file is damaged or was changed."
        ) from error
    if (
        not len(scale.low) == len(scale.high) == len(metadata.channels)
        or not np.isfinite((scale.low, scale.high)).all()
    ):
        raise ModelError(f"{path} has no input scale for each of its {len(metadata.channels)} channels; it is damaged.")
    # The settings must match the weights, else continuing from the model would start, and fetch, another network.
    kind: Architecture = "scratch" if isinstance(net, PlainUNet) else "pretrained"
    metadata = dataclasses.replace(metadata, config=dataclasses.replace(metadata.config, architecture=kind))
    return Model(metadata, net.to(target), scale, memory)
