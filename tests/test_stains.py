"""Is a slide stained like those of training? By hand, on jittered real tissue, and as the shell says it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Annotations, Session, load_model, open_slide
from napari_sparseseg.cli import main
from napari_sparseseg.errors import ModelError, PredictionError
from napari_sparseseg.io.results import record_of
from napari_sparseseg.learning.features import InputScale
from napari_sparseseg.learning.stains import (
    Stain,
    StainMap,
    TrainedTissue,
    are_patches,
    described,
    optical_density,
    patches_of,
)
from napari_sparseseg.samples import skin_slide
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.model_files import rewrite


def other_stain(pixels: np.ndarray, gain=(1.5, 0.7, 1.2)) -> np.ndarray:
    """As another scanner sees it: optical densities times a factor for each channel."""
    seen = np.exp(-optical_density(pixels) * np.array(gain, np.float32)) * 256 - 1
    return np.clip(seen, 0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def skin():
    with open_slide(skin_slide()) as slide:
        yield slide.read((0, 0, *slide.shape))


def slide_of(pixels):
    return ArraySlide([pixels], mpp=(0.5, 0.5), name="skin")


def described_of(pixels):
    slide = slide_of(pixels)
    return [patch for _, patch in patches_of(slide, slide.frame(0.5), 40)]


def test_density_and_description_by_hand():
    """exp(-1) * 256 - 1 = 93.2: a patch of that grey has the density 1 and no spread, which counts as 0.001."""
    grey = np.full((8, 8, 3), 93, np.uint8)
    np.testing.assert_allclose(optical_density(grey), 1.0, atol=0.003)
    np.testing.assert_allclose(described(grey), [0, 0, 0, *3 * [np.log(1e-3)]], atol=0.003)
    assert described(np.full((8, 8, 3), 245, np.uint8)) is None, "glass says nothing"


def test_the_other_half_of_a_slide_is_alike_and_another_stain_is_not(skin):
    middle = skin.shape[0] // 2
    stain = Stain.of(described_of(skin[:middle]))
    assert stain.unlike(described_of(skin[middle:])) <= 1
    assert stain.unlike(described_of(other_stain(skin[middle:]))) > 1.5
    assert Stain.of(described_of(skin[:middle])[:7]) is None, "too few to know what is usual"


def test_matching_brings_another_stain_back_and_leaves_glass(skin):
    part = skin[800:1600, 600:1400]
    stain, seen = Stain.of(described_of(skin)), other_stain(skin)
    matched = StainMap.between(described_of(seen), stain).apply(seen[800:1600, 600:1400])
    tissue = optical_density(part).mean(axis=-1) > 0.3
    before = np.abs(seen[800:1600, 600:1400][tissue].astype(float) - part[tissue]).mean()
    after = np.abs(matched[tissue] - part[tissue]).mean()
    assert after < 0.4 * before
    white = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_allclose(StainMap.between(described_of(seen), stain).apply(white), 255, atol=1)


def test_a_scale_with_a_stain_survives_its_file_and_one_without_is_as_before():
    assert set(InputScale.for_rgb().to_json()) == {"low", "high"}
    stained = InputScale((0.0,) * 3, (255.0,) * 3, StainMap((1,) * 3, (0.5,) * 3, (0.8,) * 3, (0.4,) * 3))
    assert InputScale.from_json(json.loads(json.dumps(stained.to_json()))) == stained
    with pytest.raises(ValueError, match="spreads above 0"):
        StainMap.from_json({"mean": [1] * 3, "spread": [0] * 3, "to_mean": [1] * 3, "to_spread": [1] * 3})


@pytest.mark.parametrize("bad", [[[1, 2]], [["a"] * 6], [[float("nan")] * 6], [[1e9] * 6], 5, [[0.0] * 6] * 1000])
def test_descriptions_of_a_hostile_file_are_refused(bad):
    assert not are_patches(bad)
    assert are_patches(TrainedTissue([[0.0] * 6] * 100).chosen())


@pytest.fixture(scope="module")
def trained(skin, tmp_path_factory):
    """A model trained on the skin, its file, and the skin as another scanner sees it."""
    folder = tmp_path_factory.mktemp("stain")
    path, slide = folder / "m.safetensors", slide_of(skin)
    with Session(["tissue", "glass"]) as session:
        session.add(slide)
        a: Annotations = session.annotations
        a.paint([(1200, 900), (1300, 1000)], 20, 1)
        a.paint([(100, 200), (100, 400)], 20, 2)
        session.train(steps=2, mpp=1.0, wait=True)
        session.save_model(path)
    for name, pixels in (("same", skin), ("other", other_stain(skin))):
        tifffile.imwrite(
            folder / f"{name}.tif", pixels, tile=(256, 256), photometric="rgb", compression="deflate",
            resolution=(20000, 20000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    return folder


def predicted(folder, name, *more):
    out = folder / f"{name}{len(more)}.ome.zarr"
    command = ["predict", str(folder / f"{name}.tif"), "--model", str(folder / "m.safetensors")]
    return main([*command, "--output", str(out), "--json", *more]), out


def test_the_shell_warns_of_another_stain_only_and_adapts_it(trained, capsys):
    assert load_model(trained / "m.safetensors").metadata.tissue
    said = {}
    for name, more in (("same", ()), ("other", ()), ("other", ("--adapt-stain",))):
        code, out = predicted(trained, name, *more)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        said[name, len(more)] = json.loads(captured.out)["stain"], captured.err
        assert record_of(out)["stain"] == said[name, len(more)][0]
    assert said["same", 0][0]["unlike"] <= 1
    assert "scanner" not in said["same", 0][1]
    assert said["other", 0][0]["unlike"] > 1
    assert len(said["other", 0][0]["worst"]) == 3
    assert "stain or scanner differ" in said["other", 0][1]
    assert "check the result" in said["other", 0][1]
    assert said["other", 1][0]["adapted"]
    assert "colours were matched" in said["other", 1][1]


def test_a_model_that_does_not_know_is_silent_and_adapts_nothing(trained, tmp_path, capsys):
    old = shutil.copy(trained / "m.safetensors", tmp_path / "old.safetensors")
    rewrite(old, lambda recipe: recipe.pop("tissue"))
    assert load_model(old).metadata.tissue == ()
    with Session() as session:
        session.open(trained / "other.tif")
        session.load_model(old)
        assert session.predict_slide(tmp_path / "a.ome.zarr").stain is None
        with pytest.raises(PredictionError, match="cannot be adapted"):
            session.predict_slide(tmp_path / "b.ome.zarr", adapt_stain=True)
    rewrite(old, lambda recipe: recipe.update(tissue=[[1, 2]]))
    with pytest.raises(ModelError, match="tissue"):
        load_model(old)
