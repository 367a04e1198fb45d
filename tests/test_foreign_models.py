"""Networks of other programs: opened from ONNX and bioimage.io files, run over slides, refused where they cannot be."""

from __future__ import annotations

import json
import re
import sys
import zipfile

import numpy as np
import onnx
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from napari_sparseseg import Session, load_model
from napari_sparseseg.cli import main
from napari_sparseseg.config import ClassDef
from napari_sparseseg.errors import ModelError, PredictionError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.export import export_model
from napari_sparseseg.learning.model_file import read_metadata
from napari_sparseseg.learning.tensor_steps import apply_steps, read_steps
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides import ArraySlide
from tests.helpers.networks import CLASSES, model_of, two_speed
from tests.helpers.onnx_files import (
    box_mean,
    brightest,
    conv,
    network,
    old_description,
    write_onnx,
    write_package,
)

COLOURS = np.array([(255, 0, 0), (0, 200, 0), (0, 0, 180)], np.uint8)


@pytest.fixture(scope="module")
def truth():
    """Blocks of the classes 1, 2, 3, and the slide of their colours at 0.5 um per px."""
    return np.kron(np.random.default_rng(1).integers(1, 4, (9, 13)), np.ones((80, 80), int))[:700, :1010]


@pytest.fixture(scope="module")
def slide_file(truth, tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "slide.tif"
    tifffile.imwrite(
        path, COLOURS[truth - 1], tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3
    )
    return path


def labels_of(path):
    return zarr.open_group(path, mode="r")["labels/classes/0"][:]


def predict(slide, model, out, *more):
    return main(["predict", str(slide), "--model", str(model), "--output", str(out), "--everywhere", *more])


# --- our own models, there and back ---


@pytest.mark.parametrize("ending", ["onnx", "zip"])
def test_an_exported_model_gives_the_label_image_of_the_model_itself(ending, cmu_svs, tmp_path):
    model = model_of(two_speed())
    model.save(tmp_path / "m.safetensors")
    export_model(model, tmp_path / f"m.{ending}")
    with Session(()) as session:
        session.open(cmu_svs)
        for name in ("m.safetensors", f"m.{ending}"):
            session.load_model(tmp_path / name)
            session.predict_slide(tmp_path / f"{name}.ome.zarr", tissue_only=False, workers=1)
        assert session.model.metadata.classes == CLASSES
        assert session.model.metadata.mpp == 1.0
    ours, theirs = (labels_of(tmp_path / f"m.{e}.ome.zarr") for e in ("safetensors", ending))
    assert len(np.unique(ours)) == 2
    assert (ours == theirs).mean() >= 0.999


def test_an_exported_model_keeps_its_halo_and_multiple(tmp_path):
    model = model_of(two_speed())
    again = load_model(export_model(model, tmp_path / "m.onnx"), "cpu")
    assert (again.halo, again.size_divisor) == (model.halo, model.size_divisor)
    assert again.metadata.rules == model.metadata.rules
    assert again.note == ""


# --- networks whose answer is known ---


def test_a_plain_network_predicts_a_slide(slide_file, truth, tmp_path, capsys):
    model = write_onnx(tmp_path / "brightest.onnx", brightest())
    out = tmp_path / "out.ome.zarr"
    assert predict(slide_file, model, out, "--csv", str(tmp_path / "a.csv"), "--probabilities") == 0
    np.testing.assert_array_equal(labels_of(out), truth)
    said = capsys.readouterr().err
    assert "does not say what its input is" in said
    assert "um per px are unknown" in said
    table = (tmp_path / "a.csv").read_text()
    assert all(f"class {k}" in table for k in (1, 2, 3))


@pytest.mark.parametrize(
    ("sides", "multiple"), [(("h", "w"), 32), ((256, 256), 32), ((200, 312), 8)], ids=["any", "square", "oblong"]
)
def test_whatever_size_it_takes_a_slide_is_predicted_without_seams(sides, multiple, tmp_path):
    """A mean over 25 px: known for every pixel; its reach is measured, as the file does not tell."""
    model = load_model(write_onnx(tmp_path / "m.onnx", box_mean(12, taken=("n", 3, *sides))), "cpu")
    assert model.size_divisor == multiple
    assert 12 <= model.halo <= 12 + multiple
    assert [c.name for c in model.metadata.classes] == ["class 1", "background"]
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    pixels[:, 300:] //= 2
    _, found = predict_region(model, ArraySlide(pixels), Box(100, 90, 450, 700), Frame((1.0, 1.0)), tile=300)
    sums = np.pad(pixels[..., 0].astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y, x = np.arange(100, 550)[:, None], np.arange(90, 790)
    square = sums[y + 13, x + 13] - sums[y - 12, x + 13] - sums[y + 13, x - 12] + sums[y - 12, x - 12]
    np.testing.assert_allclose(found[0], square / (255 * 625), atol=2e-4)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_channels_last_and_bytes(truth, tmp_path):
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["f"], ["scores"], axis=3),
    ]
    model = network(nodes, (), (1, 128, 128, 3), (1, 128, 128, 3), kind=TensorProto.UINT8)
    found = load_model(write_onnx(tmp_path / "m.onnx", model), "cpu")
    assert found.metadata.dtype == "uint8"
    pixels = COLOURS[truth[:300, :300] - 1]
    np.testing.assert_array_equal(found.probabilities(pixels).argmax(0) + 1, truth[:300, :300])
    with pytest.raises(ModelError, match="uint16"):
        found.probabilities(pixels.astype(np.uint16))


@pytest.mark.parametrize(
    ("last", "classes", "red", "black"),
    [
        (["Softmax"], ["class 1", "class 2", "class 3"], [1, 0, 0], [1 / 3] * 3),
        ([], ["class 1", "class 2", "class 3"], [1, 0, 0], [1 / 3] * 3),  # log-odds
        # each by itself: where none is likely, it is background
        (["Sigmoid"], ["class 1", "class 2", "class 3", "background"], [1, 0, 0, 0], [0, 0, 0, 1]),
    ],
    ids=["shares", "log-odds", "each"],
)
def test_what_the_values_mean(last, classes, red, black, tmp_path):
    """Scores are +-127.5 by colour; black is where all are equally low."""
    nodes, weights = conv(np.eye(3)[:, :, None, None], np.full(3, -127.5))
    for op in last:
        nodes.append(helper.make_node(op, ["scores"], ["end"], **({"axis": 1} if op == "Softmax" else {})))
    model = network(nodes, weights, output="end" if last else "scores")
    found = load_model(write_onnx(tmp_path / "m.onnx", model), "cpu")
    assert [c.name for c in found.metadata.classes] == classes
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    values = found.probabilities(pixels)
    np.testing.assert_allclose(values[:, 5, 5], red, atol=1e-5)
    np.testing.assert_allclose(values[:, 5, 50], black, atol=1e-5)


def test_one_value_outside_0_to_1_is_log_odds_and_said_to_be(tmp_path):
    nodes, weights = conv([[[[1.0]], [[0.0]], [[0.0]]]], [-100.0])
    found = load_model(write_onnx(tmp_path / "m.onnx", network(nodes, weights, given=("n", 1, "h", "w"))), "cpu")
    assert "log-odds" in found.note
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = np.array([99, 100, 101, 200])[np.arange(32) // 8]
    expected = 1 / (1 + np.exp([1.0, 0.0, -1.0, -100.0]))
    np.testing.assert_allclose(found.probabilities(pixels)[0, 3, ::8], expected, atol=1e-5)


# --- bioimage.io packages ---


@pytest.mark.parametrize("format_version", ["0.5", "0.4"])
def test_a_package_of_another_program(format_version, slide_file, truth, tmp_path, capsys):
    describe = {} if format_version == "0.5" else {"describe": old_description}
    path = write_package(tmp_path / "m.zip", brightest(), **describe)
    assert predict(slide_file, path, tmp_path / "o.ome.zarr", "--json") == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "o.ome.zarr"), truth)
    model = load_model(path, "cpu")
    assert (model.halo, model.size_divisor) == (16, 16)
    names = ["tumour", "fat cells", "stroma"] if format_version == "0.5" else ["class 1", "class 2", "class 3"]
    assert [c.name for c in model.metadata.classes] == names
    assert model.metadata.mpp == (0.5 if format_version == "0.5" else None)
    assert model.metadata.channels == (("red", "green", "blue") if format_version == "0.5" else ("R", "G", "B"))


def test_steps_before_and_after_by_hand():
    described = [
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        {"id": "scale_linear", "kwargs": {"gain": [0.5, 2.0], "offset": [1.0, 0.0], "axis": "channel"}},
        {"id": "clip", "kwargs": {"min": 0, "max": 10}},
        {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": [1.0, 2.0], "std": [2.0, 4.0], "axis": "channel"}},
    ]
    values = np.array([[[2.0, -8.0]], [[3.0, 50.0]]], np.float32)
    # 2 -> 2 -> 0.5; -8 -> -3 -> 0 -> -0.5; 3 -> 6 -> 1; 50 -> 100 -> 10 -> 2
    np.testing.assert_allclose(apply_steps(read_steps(described, "m"), values), [[[0.5, -0.5]], [[1.0, 2.0]]])
    old = [{"name": "zero_mean_unit_variance", "kwargs": {"mode": "fixed", "mean": 1.0, "std": 2.0, "axes": "xy"}}]
    np.testing.assert_allclose(apply_steps(read_steps(old, "m"), values)[0], [[0.5, -4.5]], rtol=1e-5)
    after = [{"id": "sigmoid"}, {"id": "binarize", "kwargs": {"threshold": 0.6}}]
    np.testing.assert_array_equal(apply_steps(read_steps(after, "m"), np.array([[[0.0, 0.4, 0.5]]])), [[[0, 0, 1]]])


def test_a_step_before_the_network_counts(tmp_path, truth):
    """Channels are turned around by a gain of -1: the brightest becomes the darkest."""

    def describe(data, **_):
        from tests.helpers.onnx_files import description

        found = description(data)
        found["inputs"][0]["preprocessing"] = [{"id": "scale_linear", "kwargs": {"gain": -1.0, "offset": 255.0}}]
        return found

    model = load_model(write_package(tmp_path / "m.zip", brightest(), describe), "cpu")
    pixels = 255 - COLOURS[truth[:128, :128] - 1]
    np.testing.assert_array_equal(model.probabilities(pixels).argmax(0) + 1, truth[:128, :128])


# --- a session with such a model ---


def test_a_session_and_a_project_keep_it(slide_file, truth, tmp_path):
    model = write_onnx(tmp_path / "m.onnx", brightest())
    with Session() as session:
        session.open(slide_file)
        session.load_model(model)
        labels, _ = session.predict((0, 0, 160, 160))
        np.testing.assert_array_equal(labels, truth[:160, :160])
        session.save_model(tmp_path / "kept.safetensors")
        session.save(tmp_path / "p.sparseseg")
        with pytest.raises(ModelError, match="another program"):
            session.export_model(tmp_path / "again.onnx")
    assert len(read_metadata(tmp_path / "kept.safetensors").classes) == 3
    model.unlink()
    with Session.load(tmp_path / "p.sparseseg") as session:
        np.testing.assert_array_equal(session.predict((0, 0, 160, 160))[0], labels)
    kept = load_model(tmp_path / "kept.safetensors", "cpu")
    renamed = kept.with_classes([ClassDef(9, "a", "#000000"), ClassDef(8, "b", "#111111"), ClassDef(7, "c", "#222222")])
    renamed.save(tmp_path / "renamed.safetensors")
    assert [c.id for c in load_model(tmp_path / "renamed.safetensors", "cpu").metadata.classes] == [9, 8, 7]


def test_what_is_known_of_it_is_printed(tmp_path, capsys):
    assert main(["info", str(write_package(tmp_path / "m.zip", brightest()))]) == 0
    said = capsys.readouterr().out
    assert "1 tumour" in said
    assert "0.5 um per px" in said
    assert main(["info", str(write_onnx(tmp_path / "m.onnx", brightest())), "--json"]) == 0
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["classes"]] == ["class 1", "class 2", "class 3"]


def test_training_does_not_continue_from_it(slide_file, tmp_path, capsys):
    write_onnx(tmp_path / "m.onnx", brightest())
    command = ["train", str(slide_file), "--model", str(tmp_path / "t.safetensors"), "--init", str(tmp_path / "m.onnx")]
    assert main([*command, "--steps", "1"]) == 2
    assert "not be trained on" in capsys.readouterr().err
    with Session() as session:
        session.open(slide_file)
        session.load_model(tmp_path / "m.onnx")
        for k in (0, 1):
            session.annotations.paint([(40 + 80 * k, 40)], 20, k + 1)
        session.train(steps=1, mpp=0.5, wait=True)
        assert session.model.trainable


# --- what cannot be opened ---


def damaged(**change):
    """A file of `brightest` with something changed."""

    def make(folder):
        model = brightest()
        change["by"](model)
        return write_onnx(folder / "m.onnx", model)

    return make


def text(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def of(model):
    return lambda folder: write_onnx(folder / "m.onnx", model)


def package(**more):
    return lambda folder: write_package(folder / "m.zip", brightest(), **more)


def nan_network():
    nodes, weights = conv(np.full((3, 3, 1, 1), np.nan))
    return network(nodes, weights)


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    made = [
        numpy_helper.from_array(np.array(2**62, np.int64), "n"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    return network([helper.make_node("Loop", ["n", "go", "image"], ["scores"], body=body)], made)


def huge_inside():
    """A few bytes that ask for eight terabytes."""
    made = [
        numpy_helper.from_array(np.array([1, 3, 10**6, 10**6], np.int64), "shape"),
        numpy_helper.from_array(np.array([0, 1, 2, 3], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["one"], keepdims=1),
        helper.make_node("Add", ["image", "one"], ["scores"]),
    ]
    return network(nodes, made)


def elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def own_code():
    node = helper.make_node("Anything", ["image"], ["scores"], domain="my.lab")
    model = network([node])
    model.opset_import.append(helper.make_opsetid("my.lab", 1))
    return model


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def bomb(folder):
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rdf.yaml", "type: model")
        archive.writestr("weights.onnx", bytes(1 << 25))
    return folder / "m.zip"


def weights_changed(folder):
    return write_package(
        folder / "m.zip", brightest(), weights={"onnx": {"source": "weights.onnx", "sha256": "0" * 64}}
    )


def inputs(**change):
    from tests.helpers.onnx_files import description

    found = description(b"")["inputs"]
    found[0].update(change)
    return found


BAD = {
    "text": (text("m.onnx", b"not a network, only words"), "not an ONNX file"),
    "empty": (text("m.onnx", b""), "0 bytes"),
    "pickle": (text("m.onnx", b"\x80\x02}q\x00."), "not an ONNX file"),
    "absent": (lambda folder: folder / "absent.onnx", "cannot be read"),
    "cut": (lambda folder: cut(write_onnx(folder / "m.onnx", brightest()), 0.6), "not an ONNX file|damaged"),
    "channels": (of(brightest(("n", 4, "h", "w"), ("n", 3, "h", "w"))), "fails|cannot work|damaged"),
    "five channels": (
        of(network(*conv(np.ones((2, 5, 1, 1))), taken=("n", 5, "h", "w"), given=("n", 2, "h", "w"))),
        "5 channels",
    ),
    "unknown channels": (of(network(*conv(np.ones((2, 3, 1, 1))), taken=("n", "c", "h", "w"))), "unknown number"),
    "NaN": (of(nan_network()), "not numbers"),
    "3-D": (of(network([helper.make_node("Relu", ["image"], ["scores"])], (), *[(1, 1, 8, 64, 64)] * 2)), "3-D"),
    "huge output": (of(brightest((1, 3, 256, 256), (1, 3, 10**6, 10**6))), "1,000,000"),
    "huge input": (of(brightest((1, 3, 10**5, 10**5), (1, 3, 10**5, 10**5))), "4096 are possible"),
    "many classes": (of(network(*conv(np.ones((2, 3, 1, 1))), given=("n", 10**7, "h", "w"))), "254"),
    "huge inside": (of(huge_inside()), "not run"),
    "loop": (of(loop()), "may never end"),
    "own code": (of(own_code()), "code of its own"),
    "elsewhere": (damaged(by=elsewhere), "another file"),
    "batch": (of(brightest((4, 3, 64, 64), (4, 3, 64, 64))), "batches of 4"),
    "argmax": (
        of(
            network(
                [helper.make_node("ArgMax", ["image"], ["scores"], axis=1)],
                given=("n", 1, "h", "w"),
                given_kind=TensorProto.INT64,
            )
        ),
        "argmax",
    ),
    "smaller": (
        of(network([helper.make_node("MaxPool", ["image"], ["scores"], kernel_shape=[2, 2], strides=[2, 2])])),
        "for each pixel",
    ),
    "cut zip": (lambda folder: cut(write_package(folder / "m.zip", brightest()), 0.7), "cut short"),
    "no zip": (text("m.zip", b"PK\x03\x04 and nothing"), "cut short"),
    "leads out": (package(extra=[("../outside.txt", b"x")]), "leads out"),
    "absolute": (package(extra=[("/etc/x", b"x")]), "leads out"),
    "bomb": (bomb, "would unpack"),
    "no rdf": (text("m.zip", b"PK\x05\x06" + bytes(18)), "no rdf.yaml"),
    "address": (package(weights={"onnx": {"source": "https://example.com/w.onnx"}}), "whole package"),
    "torch weights": (package(weights={"pytorch_state_dict": {"source": "w.pt"}}), "pytorch_state_dict"),
    "weights changed": (weights_changed, "SHA-256"),
    "weights absent": (package(weights={"onnx": {"source": "../w.onnx"}}), "lacks its weights"),
    "old format": (package(format_version="0.3.6"), "0.3.6"),
    "by image": (package(inputs=inputs(preprocessing=[{"id": "zero_mean_unit_variance"}])), "tiles of a slide"),
    "unknown step": (package(inputs=inputs(preprocessing=[{"id": "run_code"}])), "run_code"),
    "two inputs": (package(inputs=[*inputs(), *inputs()]), "2 inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_exit_2_with_one_line_and_leave_nothing(name, slide_file, tmp_path, capfd):
    make, expected = BAD[name]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert predict(slide_file, path, tmp_path / "out.ome.zarr") == 2
    said = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in said if not line.startswith(f"{path.name}: ")]  # but for what had to be assumed
    assert len(errors) == 1, said
    assert re.search(expected, errors[0]), errors
    assert sorted(tmp_path.iterdir()) == before


def test_what_to_install_is_said(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "m.onnx", brightest())
    for module in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            for name in [n for n in sys.modules if n.split(".")[0] == module]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ModelError, match=rf"needs {module}.*napari-sparseseg\[onnx\]"):
                load_model(path, "cpu")


def test_a_network_that_gives_nan_on_some_tiles_only(tmp_path):
    """1 / (value - 200) - 1 / (value - 200) is NaN where the value is 200, which the first try need not meet."""
    made = [numpy_helper.from_array(np.full((1, 1, 1, 1), 200.25, np.float32), "c")]
    nodes = [
        helper.make_node("Sub", ["image", "c"], ["d"]),
        helper.make_node("Sqrt", ["d2"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["q"]),
        helper.make_node("Softmax", ["q"], ["scores"], axis=1),
    ]
    nodes.insert(1, helper.make_node("Mul", ["d", "d"], ["d2"]))
    model = load_model(write_onnx(tmp_path / "m.onnx", network(nodes, made)), "cpu")
    pixels = np.full((64, 64, 3), 200.25, np.float32)
    with pytest.raises(PredictionError, match="not numbers"):
        model.probabilities(pixels)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_said(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    name = data.draw(st.sampled_from(["m.onnx", "m.zip"]))
    path = folder / name
    (write_onnx if name == "m.onnx" else write_package)(path, brightest((1, 3, 64, 64), (1, 3, 64, 64)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert load_model(path, "cpu").probabilities(np.zeros((64, 64, 3), np.uint8)).shape[1:] == (64, 64)
    except (ModelError, PredictionError) as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


def test_aliases_in_a_description_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("rdf.yaml", "a: &a [1, 1]\nb: *a\n")
    with pytest.raises(ModelError, match="aliases"):
        load_model(tmp_path / "m.zip", "cpu")


def test_metadata_of_our_own_that_was_changed(tmp_path):
    path = export_model(model_of(two_speed()), tmp_path / "m.onnx")
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "class_ids":
            entry.value = json.dumps([0, 900])
    onnx.save(model, path)
    with pytest.raises(ModelError, match="classes"):
        load_model(path, "cpu")
