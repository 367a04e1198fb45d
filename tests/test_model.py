"""Model files: what is written comes back, damaged and hostile files are refused; tiles give what the whole gives."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from napari_sparseseg.errors import ModelError
from napari_sparseseg.geometry import Box, Frame
from napari_sparseseg.learning.encoders import DEFAULT_ENCODER
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.model import Model, load_model, read_metadata
from napari_sparseseg.learning.model_file import ModelMetadata
from napari_sparseseg.prediction.tiles import predict_region
from tests.helpers.model_files import model_parts, rewrite
from tests.helpers.networks import CLASSES, model_of, plain, two_speed


@pytest.fixture(scope="module")
def tissue(cmu_svs):
    return tifffile.imread(cmu_svs)[600:1240, 700:1340]


@pytest.fixture(scope="module")
def model():
    return model_of(two_speed())


NETWORKS = {
    "head": lambda: two_speed(share=0.0),
    "decoder": two_speed,
    "scratch": plain,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tile_with_its_halo_gives_what_the_whole_image_gives(name, tissue):
    model = model_of(NETWORKS[name]())
    whole = model.probabilities(tissue)
    assert whole.shape == (2, 640, 640)
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-5)
    assert whole[0].std() > 0.01
    y0 = (288 - model.halo) // model.size_divisor * model.size_divisor
    y1 = -(-(352 + model.halo) // model.size_divisor) * model.size_divisor
    tile = model.probabilities(tissue[y0:y1, y0:y1], origin=(y0, y0))
    # Sums are ordered otherwise in another size, differently on every processor; `plain` has scores of twenty times.
    np.testing.assert_allclose(tile[:, 288 - y0 : 352 - y0, 288 - y0 : 352 - y0], whole[:, 288:352, 288:352], atol=5e-4)


def test_the_halo_of_the_plain_network_leaves_no_difference_in_double_precision(tissue):
    model = model_of(plain())
    net = model.net.double()
    y0, y1 = 288 - model.halo, -(-(352 + model.halo) // model.size_divisor) * model.size_divisor
    y0 -= y0 % model.size_divisor

    def scores(pixels):
        with torch.no_grad():
            return net(torch.from_numpy(pixels / 255.0).permute(2, 0, 1)[None])[0]

    whole, tile = scores(tissue), scores(tissue[y0:y1, y0:y1])
    inside = slice(288 - y0, 352 - y0)
    torch.testing.assert_close(tile[:, inside, inside], whole[:, 288:352, 288:352], atol=1e-9, rtol=0)


def test_a_region_is_the_same_however_it_is_cut(tissue, model):
    class Reader:
        def read_region(self, region, frame, *, mirrored):
            assert mirrored
            out = np.full((region.height, region.width, 3), 255, np.uint8)
            inside = region.intersection(Box(0, 0, 640, 640))
            part = tissue[inside.slices()]
            y, x = inside.y - region.y, inside.x - region.x
            out[y : y + inside.height, x : x + inside.width] = part
            return out

    region = Box(37, 101, 300, 333)
    _, one = predict_region(model, Reader(), region, Frame(), tile=1024)
    labels, many = predict_region(model, Reader(), region, Frame(), tile=192)
    np.testing.assert_allclose(one, many, atol=1e-4)
    assert set(np.unique(labels)) <= {3, 200}


def test_any_size_and_origin_is_predicted(tissue, model):
    assert model.probabilities(tissue[:33, :50], origin=(5, -3)).shape == (2, 33, 50)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_model_predicts_the_same(name, tissue, tmp_path):
    model = model_of(NETWORKS[name]())
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.probabilities(tissue[:256, :256]), model.probabilities(tissue[:256, :256]))
    assert loaded.metadata.classes == CLASSES
    assert (loaded.metadata.step, loaded.metadata.config.seed, loaded.halo) == (17, 5, model.halo)


def test_the_temperature_is_stored_and_earlier_models_have_none(tissue, tmp_path):
    model = model_of(two_speed(share=0.0))
    pixels = tissue[:64, :64]
    cold = model.probabilities(pixels)
    model.net.temperature = 2.0
    hot = model.probabilities(pixels)
    # Softmax of half the scores, up to the scale that makes the sum 1.
    np.testing.assert_allclose(hot, np.sqrt(cold) / np.sqrt(cold).sum(0), atol=1e-4)
    path = tmp_path / "m.safetensors"
    Model(model.metadata, model.net, model.scale).save(path)
    np.testing.assert_array_equal(load_model(path, device="cpu").probabilities(pixels), hot)
    rewrite(path, lambda r: r["extra"]["net"].pop("temperature"))
    np.testing.assert_array_equal(load_model(path, device="cpu").probabilities(pixels), cold)


def test_recipe_is_read_without_torch(model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    code = (
        "import sys; from napari_sparseseg.learning.model import read_metadata; r = read_metadata(sys.argv[1]);"
        "print(r.classes[1].name, r.step); assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["stroma", "17"]


def test_several_channels_and_16_bits(tmp_path):
    net = two_speed(channels=4)
    metadata = ModelMetadata(CLASSES, 0.5, DEFAULT_ENCODER, channels=("DAPI", "a", "b", "c"), dtype="uint16")
    model = Model(metadata, net, InputScale((100.0,) * 4, (4000.0,) * 4))
    pixels = np.random.default_rng(0).integers(0, 5000, (64, 64, 4)).astype(">u2")
    assert model.probabilities(pixels).shape == (2, 64, 64)
    with pytest.raises(ModelError, match="4 channels"):
        model.probabilities(pixels[..., :3])
    model.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", device="cpu").metadata.channels == ("DAPI", "a", "b", "c")


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a pickle was run",))


def test_pickles_are_refused_unopened(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="pickle"):
        load_model(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="pickle"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"short", "not a .safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "not a .safetensors"),
        (struct.pack("<Q", 2) + b"{}", "no napari-sparseseg model"),
        (struct.pack("<Q", 4) + b"nope", "damaged"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "damaged"),
        (struct.pack("<Q", 4) + b"[13]", "damaged"),
        (struct.pack("<Q", 19) + b'{"a": {"x": [0,1]}}', "damaged"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, reason):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        load_model(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(tmp_path / "absent.safetensors")


def test_a_cut_file_is_found_by_its_size(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or cut short"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["classes"].append({"id": 4, "name": "c", "colour": "#000000"}), "do not fit"),
        (lambda r: r["classes"][0].update(id=0), "cannot be read"),
        (lambda r: r.update(channels=["a", "b"]), "do not fit|damaged"),
        (lambda r: r["extra"]["net"].update(hidden=10**9), "hidden"),
        (lambda r: r["extra"]["net"].update(kind="other"), "update the program"),
        (lambda r: r["extra"]["net"].update(share=7), "share"),
        (lambda r: r["extra"]["net"].update(temperature=0), "temperature"),
        (lambda r: r["extra"]["net"].update(architecture="hf-hub:someone/something"), "address"),
        (lambda r: r["extra"]["net"].update(architecture="resnet18"), "do not fit its metadata"),
        (lambda r: r["extra"].pop("net"), "weights in .* do not fit"),
        (lambda r: r["extra"]["input"].update(low=[0.0]), "damaged"),
        (lambda r: r["extra"].update(memory="x"), None),
        (lambda r: r.pop("classes"), "KeyError"),
    ],
)
def test_recipes_that_do_not_fit_the_weights(saved, change, reason):
    rewrite(saved, change)
    if reason is None:
        assert load_model(saved, device="cpu").memory == ()
        return
    with pytest.raises(ModelError, match=reason):
        load_model(saved, device="cpu")


def test_a_newer_format_asks_for_an_update(saved):
    table, weights = model_parts(saved)
    table["__metadata__"]["version"] = "99"
    text = json.dumps(table).encode()
    saved.write_bytes(struct.pack("<Q", len(text)) + text + weights)
    with pytest.raises(ModelError, match="Update"):
        read_metadata(saved)


def test_a_folder_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(ModelError, match="cannot be written"):
        model.save(tmp_path / "absent" / "m.safetensors")
