"""Small ONNX networks and bioimage.io packages as other programs write them, with outputs known by hand."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def conv(weights, bias=None):
    """A convolution that keeps the size, (out, in, k, k); the image is continued by zeros."""
    weights = np.asarray(weights, np.float32)
    k = weights.shape[-1]
    bias = np.zeros(len(weights)) if bias is None else bias
    made = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.asarray(bias, np.float32), "b")]
    return [helper.make_node("Conv", ["image", "w", "b"], ["scores"], pads=[k // 2] * 4)], made


def network(
    nodes,
    weights=(),
    taken=("n", 3, "h", "w"),
    given=("n", 3, "h", "w"),
    output="scores",
    kind=FLOAT,
    given_kind=FLOAT,
    **more,
):
    """An ONNX file from nodes that make `output` of ``image``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", kind, taken)],
        [helper.make_tensor_value_info(output, given_kind, given)],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **more)


def brightest(taken=("n", 3, "h", "w"), given=("n", 3, "h", "w"), gain=1.0):
    """The class is the brightest of the three colours: softmax of their values."""
    nodes, weights = conv(gain * np.eye(3)[:, :, None, None])
    nodes.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
    return network(nodes, weights, taken, given, "shares")


def box_mean(radius, **sizes):
    """One value: the mean of the first channel in a square around the pixel, over 255."""
    weights = np.zeros((1, 3, 2 * radius + 1, 2 * radius + 1))
    weights[0, 0] = 1 / (255 * (2 * radius + 1) ** 2)
    return network(*conv(weights), given=("n", 1, *sizes.get("taken", ("n", 3, "h", "w"))[2:]), **sizes)


def write_onnx(path, model):
    onnx.save(model, path)
    return path


def description(model_bytes, **changes):
    """The rdf.yaml, format 0.5, of a network of three channels and three classes."""
    sides = [
        {"type": "space", "id": a, "size": {"min": 64, "step": 16}, "scale": 0.5, "unit": "micrometer"} for a in "yx"
    ]
    made = [
        {"type": "space", "id": a, "size": {"tensor_id": "image", "axis_id": a}, "scale": 0.5, "unit": "micrometer"}
        | {"halo": 16}
        for a in "yx"
    ]
    classes = {"type": "channel", "channel_names": ["tumour", "fat_cells", "stroma"]}
    channels = {"type": "channel", "channel_names": ["red", "green", "blue"]}
    found = {
        "format_version": "0.5.4",
        "type": "model",
        "name": "colours",
        "inputs": [
            {"id": "image", "axes": [{"type": "batch"}, channels, *sides], "preprocessing": []},
        ],
        "outputs": [
            {
                "id": "shares",
                "axes": [{"type": "batch"}, classes, *made],
                "postprocessing": [],
            }
        ],
        "weights": {
            "onnx": {
                "source": "weights.onnx",
                "opset_version": 17,
                "sha256": hashlib.sha256(model_bytes).hexdigest(),
            }
        },
    }
    return found | changes


def old_description(model_bytes, **changes):
    """The same in format 0.4."""
    found = {
        "format_version": "0.4.9",
        "type": "model",
        "inputs": [
            {
                "name": "image",
                "axes": "bcyx",
                "data_type": "float32",
                "shape": {"min": [1, 3, 64, 64], "step": [0, 0, 16, 16]},
            }
        ],
        "outputs": [
            {
                "name": "shares",
                "axes": "bcyx",
                "data_type": "float32",
                "halo": [0, 0, 16, 16],
                "shape": {"reference_tensor": "image", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]},
            }
        ],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": hashlib.sha256(model_bytes).hexdigest()}},
    }
    return found | changes


def write_package(path, model, describe=description, extra=(), **changes):
    data = model.SerializeToString()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(describe(data, **changes)))
        archive.writestr("weights.onnx", data)
        for name, content in extra:
            archive.writestr(name, content)
    return path
