"""What an ONNX file takes and gives, read from its graph before anything runs.

ONNX files come from anywhere. A graph may name files elsewhere as its weights, loop for ever, or describe a tensor of
terabytes in a few bytes; these are refused here, by name.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.model_file import MAX_CHANNELS
from napari_sparseseg.learning.onnx_files import NetworkFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TRIAL_SIDE = 288
"""Of the image that a network of any size is tried with: nine times the usual multiple of 32."""
USUAL_MULTIPLE = 32
MOST_CLASSES = 254
_MOST_NUMBERS = 1 << 29
"""Of one tensor of one image, 2 GB; the largest of a U-Net for an image of `TRIAL_SIDE` has a hundredth."""
_MOST_SIDE = 4096
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_ENDLESS = ("Loop", "Scan", "SequenceMap")
_KINDS = {"FLOAT": "float32", "DOUBLE": "float64"} | {
    k.upper(): k for k in ("float16", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
}
_PASSIVE = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True)
class Signature:
    """Input and output of a network."""

    taken: str
    """Name of the input."""
    given: str
    dtype: np.dtype[Any]
    axes: str
    output_axes: str
    channels: int
    sides: tuple[int, int] | None
    """(h, w) that it takes; None: any multiple of `NetworkFacts.sizes`."""
    last: str
    """The operator that the output comes from."""
    pixel_bytes: float
    """Of the two largest tensors together, per pixel of the input."""
    producer: str


def inspect(weights: bytes, facts: NetworkFacts, where: str) -> tuple[Signature, NetworkFacts]:
    """What a network takes and gives; the facts gain what this program's own metadata in it say.

    Raises
    ------
    ModelError
        For what is no ONNX file, what cannot be run over slides, and what would not end or not fit into memory.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ModelError(
            f"{where} needs {error.name}; run: pip install 'napari-sparseseg[onnx]', then open it again."
        ) from error
    try:
        model = onnx.load_model_from_string(weights)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{where} is not an ONNX file, or is damaged or cut short. Use another copy.") from error
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise ModelError(f"{where} is not an ONNX file: it has no network. Choose a model file.")
    _refuse_elsewhere(model, where)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where} is damaged, or of a later version of ONNX: {reason}.") from error
    if model.producer_name == "napari-sparseseg":
        facts = _own(facts, {p.key: p.value for p in model.metadata_props}, where)
    return _signature(onnx, model, facts, where), facts


def _refuse_elsewhere(model: Any, where: str) -> None:
    """Refuse weights in other files, operators that are code of their own, and those that may not end."""
    own = {(f.domain, f.name) for f in model.functions}
    for graph in (model.graph, *model.functions):
        for node, tensors in _walk(graph, 0, where):
            if any(t.data_location or t.external_data for t in tensors):
                raise ModelError(
                    f"{where} keeps its weights in another file, which is not read; save it as one file "
                    "(onnx.save_model with save_as_external_data=False)."
                )
            if node is None:
                continue
            if node.op_type in _ENDLESS and node.domain in _DOMAINS:
                raise ModelError(f"{where} loops (operator {node.op_type}), so it may never end; it is not run.")
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
                raise ModelError(
                    f"{where} needs {node.domain}.{node.op_type}, which is code of its own; it is not run."
                )


def _walk(graph: Any, depth: int, where: str) -> Iterator[tuple[Any, Sequence[Any]]]:
    """Every node of a graph or function with the tensors in its attributes, and the graph's own tensors."""
    if depth > 8:
        raise ModelError(f"{where} nests networks in networks too deeply; it is not run.")
    if hasattr(graph, "initializer"):
        if graph.sparse_initializer:
            raise ModelError(f"{where} has sparse weights, which are not supported.")
        yield None, graph.initializer
    for node in graph.node:
        yield node, [t for a in node.attribute for t in ([a.t] if a.HasField("t") else []) + list(a.tensors)]
        for inner in (g for a in node.attribute for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)):
            yield from _walk(inner, depth + 1, where)


def _own(facts: NetworkFacts, stored: dict[str, str], where: str) -> NetworkFacts:
    """NetworkFacts with those that `export` wrote into the file."""
    try:
        values = {key: json.loads(value) for key, value in stored.items()}
        least = int(values["multiple"])
        return NetworkFacts.from_json(
            {
                **facts.to_json(),
                "sizes": ((least, least),) * 2,
                "names": values["classes"],
                "described": True,
                **{key: values[key] for key in ("halo", "channels", "colours", "mpp")},
                "ids": values["class_ids"],
                "rules": values.get("rules", {}),
            }
        )
    except (KeyError, ValueError, TypeError, RecursionError, ModelError) as error:
        raise ModelError(f"the metadata in {where} cannot be read: {error}. Use another copy of the file.") from error


def _signature(onnx: Any, model: Any, facts: NetworkFacts, where: str) -> Signature:
    graph = model.graph
    weights = {t.name for t in graph.initializer}
    inputs, outputs = [v for v in graph.input if v.name not in weights], list(graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{where} takes {len(inputs)} tensors and gives {len(outputs)}; models of one image in and one out can be "
            "run over slides."
        )
    (kind, taken), (given_kind, given) = (_described(onnx, v, where) for v in (inputs[0], outputs[0]))
    if given_kind.kind != "f":
        raise ModelError(f"{where} gives {given_kind} instead of a value for each class; export it without its argmax.")
    axes = _fitting_axes(facts.axes, taken, "takes", where)
    output_axes = _fitting_axes(facts.output_axes, given, "gives", where, axes)
    channels = taken[axes.index("c")] if "c" in axes else 1
    if not channels or channels > MAX_CHANNELS:
        raise ModelError(
            f"{where} takes {channels or 'an unknown number of'} channels; 1 to {MAX_CHANNELS} are possible."
        )
    for tensor, letters in ((taken, axes), (given, output_axes)):
        if "b" in letters and (tensor[letters.index("b")] or 1) != 1:
            raise ModelError(f"{where} works on batches of {tensor[letters.index('b')]} images; export it for one.")
    sides = _sides(taken, axes, facts, where)
    _require_output(given, output_axes, sides, where)
    trial = sides or (trial_side(facts, 0), trial_side(facts, 1))
    if max(trial) > _MOST_SIDE:
        raise ModelError(f"{where} takes at least {max(trial):,} px a side; {_MOST_SIDE:,} are possible.")
    image = {"b": 1, "c": channels, "y": trial[0], "x": trial[1]}
    largest = _largest(onnx, model, inputs[0], [image[a] for a in axes], where)
    return Signature(
        inputs[0].name,
        outputs[0].name,
        kind,
        axes,
        output_axes,
        channels,
        sides,
        _last(graph),
        sum(largest[:2]) / (trial[0] * trial[1]),
        model.producer_name[:100],
    )


def _described(onnx: Any, value: Any, where: str) -> tuple[np.dtype[Any], list[int]]:
    """Type and shape of an input or output; 0 where a side may be anything."""
    tensor = value.type.tensor_type
    number = tensor.elem_type
    known = number in onnx.TensorProto.DataType.values()
    kind = _KINDS.get(onnx.TensorProto.DataType.Name(number)) if known else None
    if not value.type.HasField("tensor_type") or kind is None or not tensor.HasField("shape"):
        raise ModelError(
            f"{where}: {value.name[:100]!r} is no image of numbers; such a network cannot be run over slides."
        )
    return np.dtype(kind), [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]


def _fitting_axes(axes: str, shape: Sequence[int], verb: str, where: str, otherwise: str = "bcyx") -> str:
    """Axes of a tensor: those of the description, else those that its shape shows, `otherwise` where it shows none."""
    if axes and len(axes) != len(shape):
        raise ModelError(f"{where} {verb} {len(shape)} axes where its rdf.yaml says {axes}; use another copy of it.")
    if axes:
        return axes
    if len(shape) != 4:
        kind = "3-D images" if len(shape) == 5 else f"{len(shape)} axes"
        raise ModelError(f"{where} {verb} {kind}; networks of (batch, channel, height, width) can be run over slides.")
    first, last = shape[1], shape[3]
    if not first and not last:
        return otherwise
    return "byxc" if last and last <= MAX_CHANNELS and not 0 < first <= last else "bcyx"


def _sides(taken: Sequence[int], axes: str, facts: NetworkFacts, where: str) -> tuple[int, int] | None:
    """The one size that the network takes; None where there are several."""
    found = []
    for k, axis in enumerate("yx"):
        side = taken[axes.index(axis)]
        if facts.sizes:
            least, step = facts.sizes[k]
            if side and (side < least or (side != least and (step == 0 or (side - least) % step))):
                raise ModelError(f"{where} takes {side} px where its description says {least}; use another copy of it.")
            if not side and (step == 0 or least % step):  # sizes that are not multiples of one number: take one of them
                side = least if step == 0 else least + max(0, -(-(TRIAL_SIDE - least) // step)) * step
        found.append(side)
    if (found[0] == 0) != (found[1] == 0):
        raise ModelError(
            f"{where} takes images of {found[0] or 'any'} x {found[1] or 'any'} px, one side fixed; export it again."
        )
    if max(found) > _MOST_SIDE:
        raise ModelError(f"{where} takes images of {found[0]} x {found[1]} px at once; {_MOST_SIDE} are possible.")
    if found[0] and min(found) < 8:
        raise ModelError(f"{where} takes images of {found[0]} x {found[1]} px, too few for a slide.")
    return (found[0], found[1]) if found[0] else None


def _require_output(given: Sequence[int], axes: str, sides: tuple[int, int] | None, where: str) -> None:
    """Refuse an output that the file itself says is none of classes at the input's size."""
    classes = given[axes.index("c")] if "c" in axes else 1
    if classes > MOST_CLASSES:
        raise ModelError(f"{where} gives {classes:,} values a pixel; {MOST_CLASSES} classes are possible.")
    for k, axis in enumerate("yx"):
        side = given[axes.index(axis)]
        if side > _MOST_SIDE or (sides is not None and side not in (0, sides[k])):
            taken = "any size" if sides is None else f"{sides[0]} x {sides[1]} px"
            found = " x ".join(f"{given[axes.index(a)]:,}" for a in "yx")
            raise ModelError(f"{where} gives {found} px for {taken}; only as many as it takes can be used.")


def trial_side(facts: NetworkFacts, k: int) -> int:
    """A side that a network of any size is tried with."""
    if not facts.sizes:
        return TRIAL_SIDE
    least, step = facts.sizes[k]
    return max(least, -(-TRIAL_SIDE // step) * step)


def _largest(onnx: Any, model: Any, taken: Any, shape: Sequence[int], where: str) -> list[int]:
    """Bytes of the tensors that the network makes of one image, as far as its graph tells, the largest first."""
    plan = onnx.ModelProto()
    plan.CopyFrom(model)
    del plan.graph.value_info[:]
    value = next(v for v in plan.graph.input if v.name == taken.name)
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(onnx.helper.make_tensor_value_info(taken.name, kind, list(shape)))
    for output in plan.graph.output:
        output.type.tensor_type.ClearField("shape")
    sizes: list[int] = []
    for by_value in (False, True):  # shapes that are computed come last: what they are computed from may be huge itself
        try:
            found = onnx.shape_inference.infer_shapes(plan, data_prop=by_value)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{where} cannot work: {reason}. Use another copy of the file.") from error
        sizes = _sizes(found, where)
    return [*sorted(sizes, reverse=True), 0, 0]


def _sizes(found: Any, where: str) -> list[int]:
    """Bytes of every tensor whose shape is known, as float32.

    Raises
    ------
    ModelError
        Where one is larger than any network needs.
    """
    sizes = []
    for made in (*found.graph.value_info, *found.graph.output):
        tensor = made.type.tensor_type
        sides = [d.dim_value for d in tensor.shape.dim]
        size = math.prod(sides)
        if size > _MOST_NUMBERS and all(s > 0 for s in sides):
            raise ModelError(
                f"{where} makes {' x '.join(f'{s:,}' for s in sides)} numbers of one image "
                f"({made.name[:50]!r}); that is more than any segmentation needs, it is not run."
            )
        sizes.append(4 * size)
    return sizes


def _last(graph: Any) -> str:
    """The operator that the output comes from, those left out that only pass values on."""
    makers = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name
    for _ in range(10):
        node = makers.get(name)
        if node is None or node.op_type not in _PASSIVE:
            return "" if node is None else str(node.op_type)
        name = node.input[0]
    return ""


def with_sizes(facts: NetworkFacts, multiple: int) -> NetworkFacts:
    """NetworkFacts of a network that takes any multiple of a number."""
    return replace(facts, sizes=((multiple, multiple),) * 2)
