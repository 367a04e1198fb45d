"""`OnnxModel`: a segmentation network that another program made, as a model that predicts like our own.

It is run by onnxruntime, in windows of the size that it takes, or of one whose tensors need little memory. A first try
on a made-up image says what its values are (probabilities, a value for each class by itself, log-odds) and how far a
pixel looks, where its description does not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_sparseseg.config import ClassDef, make_classes
from napari_sparseseg.errors import ModelError, PredictionError, SparseSegError
from napari_sparseseg.files import write_atomic
from napari_sparseseg.learning.model_file import FORMAT, VERSION, ModelMetadata, PredictionRules, require_metadata
from napari_sparseseg.learning.onnx_files import NetworkFacts, read_onnx_file, read_package, require_room
from napari_sparseseg.learning.onnx_graph import MOST_CLASSES, USUAL_MULTIPLE, inspect, trial_side, with_sizes
from napari_sparseseg.learning.tensor_steps import apply_steps, as_dtype, sigmoid, softmax
from napari_sparseseg.learning.torch_runtime import choose_device, out_of_memory

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from napari_sparseseg.learning.onnx_graph import Signature

Meaning = Literal["shares", "each", "odds", "one", "one odds"]
"""Of the values: probabilities that sum to 1; one probability for each class by itself; log-odds; of a single class."""
KIND = "onnx"
"""Of ``extra.net`` in a model file that contains such a network."""
_WINDOW_BYTES = 200 << 20
"""For the two largest tensors of a window."""
_LARGEST_WINDOW = 1088
_LEAST_WINDOW = 256
_SEEN = 0.005
"""A change of a probability by less is not seen."""
logger = logging.getLogger(__name__)


class OnnxModel:
    """A network of another program; immutable, so any thread may use it. From `load_model`.

    Parameters
    ----------
    metadata
        Classes in channel order, resolution and input; ``extra`` says how to read the network again.
    network
        The network.
    note
        For the user: what had to be assumed.
    """

    trainable = False

    def __init__(self, metadata: ModelMetadata, network: OnnxNetwork, note: str = "") -> None:
        self.metadata, self.network, self.note = metadata, network, note
        self.memory: tuple[()] = ()
        self.halo, self.size_divisor, self.device = network.halo, network.multiple, network.device

    def __repr__(self) -> str:
        return f"<OnnxModel {len(self.metadata.classes)} classes, on {self.device}>"

    def probabilities(self, pixels: NDArray[Any], *, origin: tuple[int, int] = (0, 0)) -> NDArray[np.float32]:
        """Class probabilities of an image or tile; see `Model.probabilities`.

        Raises
        ------
        ModelError
            For another number of channels, or values that the network's input cannot hold.
        PredictionError
            Where the network fails, gives no numbers, or memory runs out.
        """
        wanted = len(self.metadata.channels)
        if pixels.ndim != 3 or pixels.shape[2] != wanted:
            raise ModelError(f"pixels have shape {pixels.shape}; give (h, w, {wanted}).")
        dtype = self.network.signature.dtype
        if dtype.kind in "ui" and pixels.dtype.kind in "ui" and pixels.dtype.itemsize > dtype.itemsize:
            raise ModelError(f"the model takes {dtype}, and the slide has {pixels.dtype}; its values would be cut off.")
        h, w, _ = pixels.shape
        m = self.size_divisor
        top, left = origin[0] % m, origin[1] % m
        bottom, right = -(h + top) % m, -(w + left) % m
        if top or left or bottom or right:
            pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")
        values = self.network.whole(pixels)
        return np.ascontiguousarray(values[:, top : top + h, left : left + w])

    def with_rules(self, rules: PredictionRules) -> OnnxModel:
        """The same network, predicting by other rules."""
        return OnnxModel(dataclasses.replace(self.metadata, rules=rules), self.network, self.note)

    def with_classes(self, classes: Sequence[ClassDef]) -> OnnxModel:
        """The same network with other ids, names and colours for its channels, in channel order."""
        return OnnxModel(dataclasses.replace(self.metadata, classes=tuple(classes)), self.network, self.note)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX file inside one ``.safetensors`` file, atomically, with the classes as they are now.

        Raises
        ------
        ModelError
            When the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {"onnx": np.frombuffer(self.network.weights, np.uint8)}
        header = {"format": FORMAT, "version": str(VERSION), "recipe": json.dumps(self.metadata.to_json())}
        try:
            write_atomic(Path(path), lambda temporary: save_file(tensors, temporary, metadata=header))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model {path} cannot be written: {error}. Choose another folder.") from error


class OnnxNetwork:
    """An ONNX network in onnxruntime: what it takes and gives, and how to run it over an image of any size.

    Parameters
    ----------
    weights
        The ONNX file.
    facts
        What is known of it.
    signature
        From `inspect`.
    device
        From `choose_device`.
    where
        Its name in messages.
    """

    def __init__(self, weights: bytes, facts: NetworkFacts, signature: Signature, device: str, where: str) -> None:
        self.weights, self.facts, self.signature, self._where = weights, facts, signature, where
        self._session, self.device = _session(weights, device, where)
        self.halo = 0
        self.meaning: Meaning = "shares"
        self.given = self.classes = 0
        """Values a pixel, and classes: one more where what is none of them is a class of its own."""
        self._prepare()

    def whole(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (K, h, w) of pixels (h, w, C) whose sides are multiples of `multiple`."""
        h, w, _ = pixels.shape
        rows, columns = self._cuts(h, 0), self._cuts(w, 1)
        grown = max(rows[-1][1], h) - h, max(columns[-1][1], w) - w
        if any(grown):
            pixels = np.pad(pixels, ((0, grown[0]), (0, grown[1]), (0, 0)), mode="edge")
        out = np.empty((self.classes, h, w), np.float32)
        for y0, y1, top, bottom in rows:
            for x0, x1, left, right in columns:
                found = self._meant(self._raw(pixels[y0:y1, x0:x1]))
                out[:, top:bottom, left:right] = found[:, top - y0 : bottom - y0, left - x0 : right - x0]
        return out

    @cached_property
    def multiple(self) -> int:
        """Sides and origins of what the network gets are multiples of this."""
        if self.signature.sides is None:
            return math.lcm(*(step for _, step in self.facts.sizes))
        both = math.gcd(*self.signature.sides)
        return min(both & -both, USUAL_MULTIPLE)

    @cached_property
    def _window(self) -> tuple[int, int]:
        """Largest (h, w) that the network gets at once."""
        if self.signature.sides is not None:
            return self.signature.sides
        m = self.multiple
        side = (_WINDOW_BYTES / max(self.signature.pixel_bytes, 1.0)) ** 0.5
        least = max(_LEAST_WINDOW, 2 * self.halo + 4 * m, *(n for n, _ in self.facts.sizes))
        side = max(-(-least // m), int(min(side, _LARGEST_WINDOW)) // m) * m
        return side, side

    def _cuts(self, n: int, k: int) -> list[tuple[int, int, int, int]]:
        """Windows along a side of n px: where each begins and ends, and which part of the result is taken from it."""
        side, m = self._window[k], self.multiple
        if n <= side:
            if self.signature.sides is None:
                least, step = self.facts.sizes[k]
                side = least + max(0, -(-(n - least) // step)) * step
            return [(0, side, 0, n)]
        halo = min(-(-self.halo // m) * m, (side - 1) // (2 * m) * m)
        step = side - 2 * halo
        starts = [*range(0, n - side, step), n - side]
        edges = [0, *(start + halo for start in starts[1:]), n]
        return [(s, s + side, a, b) for s, a, b in zip(starts, edges, edges[1:], strict=False)]

    def _raw(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """The network's values (K, h, w), its own steps before and after included.

        Raises
        ------
        PredictionError
            Where it fails, or gives anything but numbers for each pixel.
        """
        taken, facts = self.signature, self.facts
        image = np.nan_to_num(pixels.transpose(2, 0, 1).astype(np.float32), copy=False, nan=0.0)
        image = apply_steps(facts.before, image)
        tensor = as_dtype(_arranged(image, "cyx", taken.axes), taken.dtype)
        try:
            answer = self._session.run([taken.given], {taken.taken: np.ascontiguousarray(tensor)})[0]
        except Exception as error:  # onnxruntime has classes of its own that share no base
            h, w = pixels.shape[:2]
            if out_of_memory(error):
                raise PredictionError(f"{self._where}: there is not enough memory for {h} x {w} px at once.") from error
            reason = " ".join(str(error).split())[:200]
            raise PredictionError(f"{self._where} fails on an image of {h} x {w} px: {reason}.") from error
        letters = taken.output_axes
        if answer.ndim != len(letters) or answer.shape[letters.index("y")] != pixels.shape[0] or (
            answer.shape[letters.index("x")] != pixels.shape[1]
        ):  # fmt: skip
            raise PredictionError(
                f"{self._where} gives {answer.shape} for {pixels.shape[0]} x {pixels.shape[1]} px; only a value "
                "for each pixel can be used."
            )
        values = apply_steps(facts.after, _arranged(answer, letters, "cyx").astype(np.float32))
        if not np.isfinite(values).all():
            raise PredictionError(f"{self._where} gives values that are not numbers (NaN); they cannot be used.")
        return values

    def _meant(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (K, h, w) that sum to 1."""
        if self.meaning == "odds":
            return softmax(values)
        if self.meaning == "one odds":
            values = sigmoid(values)
        values = np.clip(values, 0.0, 1.0)
        if self.meaning != "shares" and self.classes > len(values):  # what is none of the classes
            values = np.concatenate([values, 1.0 - values.max(axis=0, keepdims=True)])
        total = values.sum(axis=0)
        values[:, total <= 0] = 1.0
        out: NDArray[np.float32] = values / values.sum(axis=0)
        return out

    def _prepare(self) -> None:
        """Try the network: which sizes it takes, what its values are, how far a pixel looks."""
        values, image = self._first_try()
        if not 1 <= len(values) <= MOST_CLASSES:
            raise ModelError(f"{self._where} gives {len(values):,} values a pixel; 1 to {MOST_CLASSES} are possible.")
        needed = max((s.channels for s in self.facts.after), default=1)
        if needed not in (1, len(values)):
            raise ModelError(f"{self._where} has numbers for {needed} classes, and gives {len(values)}; it is damaged.")
        self.meaning = _meaning(values, self.signature.last, [s.kind for s in self.facts.after])
        named = {n.casefold() for n in self.facts.names}
        alone = self.meaning in ("one", "one odds") or (self.meaning == "each" and "background" not in named)
        self.given, self.classes = len(values), len(values) + alone
        self.halo = self.facts.halo if self.facts.halo is not None else self._reach(image, self._meant(values))
        if self.signature.sides is not None and 2 * self.halo >= min(self.signature.sides):
            raise ModelError(
                f"{self._where} has a border of {self.halo} px, which leaves nothing of {self.signature.sides}."
            )

    def _first_try(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Values of a made-up image, and the image; a network of any size is tried with usual multiples."""
        if self.signature.sides is not None or self.facts.sizes:
            sides = self.signature.sides or (trial_side(self.facts, 0), trial_side(self.facts, 1))
            return self._tried(sides)
        for multiple in (USUAL_MULTIPLE, 64, 128):
            self.facts = with_sizes(self.facts, multiple)
            side = -(-256 // multiple) * multiple + multiple
            try:
                return self._tried((side, side + 2 * multiple))
            except ModelError as error:
                failed = error
        raise failed

    def _tried(self, sides: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        image = _made_up(sides, self.signature.channels)
        try:
            return self._raw(image), image
        except PredictionError as error:
            raise ModelError(str(error)) from error

    def _reach(self, image: NDArray[np.float32], values: NDArray[np.float32]) -> int:
        """How far away a change of the image is seen, at most a quarter of it."""
        half = image.shape[1] // 2
        changed = image.copy()
        changed[:, :half] = changed[::-1, :half][:, ::-1]
        differs = np.abs(self._meant(self._raw(changed)) - values)[:, :, half:].max(axis=(0, 1)) > _SEEN
        reach = int(np.flatnonzero(differs)[-1]) + 1 if differs.any() else 0
        m = self.multiple
        height, width, _ = image.shape
        return int(min(-(-reach // m) * m, height // 4 // m * m, width // 4 // m * m))


def _meaning(values: NDArray[np.float32], last: str, after: Sequence[str]) -> Meaning:
    """What a network's values are, by its last operator and the values of a first try."""
    inside = bool(values.min() >= -1e-4 and values.max() <= 1 + 1e-4)
    alone = inside and ("sigmoid" in after or "above" in after or last in ("Sigmoid", "HardSigmoid", "Clip", ""))
    if len(values) == 1:
        return "one" if inside else "one odds"
    if inside and np.abs(values.sum(axis=0) - 1).max() < 1e-3:
        return "shares"
    return "each" if alone else "odds"


def _made_up(sides: tuple[int, int], channels: int) -> NDArray[np.float32]:
    """An image of 0..255 with blobs of several sizes, the same every time."""
    rng = np.random.default_rng(0)
    out = np.zeros((*sides, channels), np.float32)
    for cell in (4, 16, 64):
        coarse = rng.random((-(-sides[0] // cell), -(-sides[1] // cell), channels), np.float32)
        out += coarse.repeat(cell, axis=0).repeat(cell, axis=1)[: sides[0], : sides[1]]
    rounded: NDArray[np.float32] = np.rint(out * np.float32(85))
    return rounded


def _arranged(values: NDArray[Any], axes: str, wanted: str) -> NDArray[Any]:
    """Values with other axes; those of one entry come and go."""
    for letter in sorted(set(axes) - set(wanted)):
        values = values.take(0, axis=axes.index(letter))
        axes = axes.replace(letter, "")
    for letter in sorted(set(wanted) - set(axes)):
        values, axes = values[None], letter + axes
    return values.transpose([axes.index(letter) for letter in wanted])


def _session(weights: bytes, device: str, where: str) -> tuple[Any, torch.device]:
    """The network in onnxruntime, and the device that it runs on.

    Raises
    ------
    ModelError
        Where onnxruntime is not installed, or cannot run it there.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{where} needs onnxruntime; run: pip install 'napari-sparseseg[onnx]', then open it again."
        ) from error
    chosen = choose_device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if chosen.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": chosen.index or 0}))
    elif chosen.type != "cpu":
        if device != "auto":
            raise ModelError(f"onnxruntime does not know {device} here; install onnxruntime-gpu, or choose device cpu.")
        chosen = choose_device("cpu")
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one block for all tensors of a window: 0.4 GB more, and no faster
    options.log_severity_level = 4  # what fails is raised; onnxruntime would print it too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(weights, options, providers=providers), chosen
    except Exception as error:  # onnxruntime has classes of its own that share no base
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where} cannot be run by onnxruntime {onnxruntime.__version__}: {reason}.") from error


def load_onnx(path: Path, device: str) -> OnnxModel:
    """Open an ``.onnx`` file or a bioimage.io package.

    Raises
    ------
    ModelError
        For anything that cannot be run over slides, in one sentence.
    """
    package = path.suffix.lower() == ".zip"
    weights, facts = read_package(path) if package else (read_onnx_file(path), NetworkFacts())
    return _model(weights, facts, device, str(path))


def load_inside(path: Path, metadata: ModelMetadata, device: str) -> OnnxModel:
    """The ONNX model that a ``.safetensors`` file contains; see `load_onnx`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        require_room(path.stat().st_size, str(path))
        tensors = load_file(path)
        weights, net = tensors["onnx"].tobytes(), metadata.extra["net"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path} is damaged: {error}. Use another copy of the file.") from error
    model = _model(weights, NetworkFacts.from_json(net.get("facts", {})), device, str(path))
    if len(metadata.classes) != len(model.metadata.classes) or len(metadata.channels) != len(model.metadata.channels):
        raise ModelError(f"{path} does not fit its metadata; the file is damaged or was changed.")
    kept = dataclasses.replace(model.metadata, classes=metadata.classes, rules=metadata.rules, mpp=metadata.mpp)
    return OnnxModel(kept, model.network, model.note)


def _model(weights: bytes, facts: NetworkFacts, device: str, where: str) -> OnnxModel:
    signature, known = inspect(weights, facts, where)
    if any(s.channels not in (1, signature.channels) for s in known.before):
        raise ModelError(
            f"{where} has numbers for other than its {signature.channels} channels; its package is damaged."
        )
    if known.channels and len(known.channels) != signature.channels:
        known = dataclasses.replace(known, channels=())
    network = OnnxNetwork(weights, known, signature, device, where)
    classes = _classes(known, network, where)
    dtype = signature.dtype.name if signature.dtype.kind in "ui" else "uint8"
    metadata = ModelMetadata(
        classes,
        known.mpp,
        "ONNX",
        channels=known.channels or _channel_names(signature.channels),
        dtype=dtype,
        rules=_rules(known, where),
        extra={"net": {"kind": KIND, "facts": facts.to_json()}},
    )
    require_metadata(metadata, where)
    logger.info("opened %s: %s, %s, halo %d", where, signature, network.meaning, network.halo)
    return OnnxModel(metadata, network, _note(where, known, network))


def _classes(facts: NetworkFacts, network: OnnxNetwork, where: str) -> tuple[ClassDef, ...]:
    """Classes by the names of the file, else numbered; what is none of them is called background."""
    names = list(facts.names) if len(facts.names) in (network.given, network.classes) else []
    names = names or [f"class {k + 1}" for k in range(network.given)]
    try:
        if len(facts.ids) == len(facts.colours) == len(names) == network.classes:
            return make_classes(map(ClassDef, facts.ids, names, facts.colours))
        return make_classes([*names, *["background"] * (network.classes - len(names))])
    except (SparseSegError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the classes of {where} cannot be used: {error}") from error


def _channel_names(channels: int) -> tuple[str, ...]:
    return ("R", "G", "B") if channels == 3 else tuple(f"channel {k + 1}" for k in range(channels))


def _rules(facts: NetworkFacts, where: str) -> PredictionRules:
    try:
        return PredictionRules(**facts.rules)
    except TypeError as error:
        raise ModelError(f"the metadata in {where} cannot be read: {error}. Use another copy of the file.") from error


def _note(where: str, facts: NetworkFacts, network: OnnxNetwork) -> str:
    """What had to be assumed, for the user."""
    said = []
    if not facts.described:
        said.append("it does not say what its input is, so it gets the pixel values as they are")
    if facts.mpp is None:
        said.append("its um per px are unknown, so it gets slides at the resolution of the result (--mpp)")
    if network.meaning == "one odds":
        said.append("its one value is taken as log-odds of class 1 against background")
    name = Path(where).name
    return f"{name}: {'; '.join(said)}. Check its result on a slide that you know." if said else ""
