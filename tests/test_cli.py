"""The shell: real processes for exit codes, `main` for the rest."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Annotations, open_slide
from napari_sparseseg.cli import main
from napari_sparseseg.cli.common import say
from napari_sparseseg.learning.model_file import read_metadata
from tests.helpers.geojson import qupath
from tests.helpers.hub_server import Hub, at_hub
from tests.helpers.networks import model_of, two_speed


def run(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "napari_sparseseg", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        **kwargs,
    )


def test_help_of_every_command(capsys):
    for command in ("demo", "info", "train", "predict", "export", "convert"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_info_as_json(cmu_svs, capsys):
    assert main(["info", str(cmu_svs), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [2967, 2220]
    assert facts["mpp"] == pytest.approx([0.499, 0.499])


@pytest.mark.parametrize(
    "args",
    [
        ["info", "missing.svs"],
        ["train", "missing.svs", "--model", "m.safetensors"],
        ["predict", "missing.svs", "--model", "m.safetensors", "--output", "o.ome.zarr"],
        ["convert", "missing.geojson", "out.sparseseg"],
        ["train", "a.svs", "--model", "m.pt"],
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_2(args, tmp_path):
    ended = run(*args, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("napari-sparseseg: ")
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ended.stderr


def test_an_encoder_is_fetched_only_after_consent(tiny_slide, tmp_path, capsys, monkeypatch):
    """Licence, its link and size are shown first; without a terminal only --yes is consent."""
    marks = qupath(tmp_path / "m.geojson", [("stripes", (50, 50, 200, 60)), ("dots", (700, 500, 200, 60))])
    args = ["train", str(tiny_slide), "--annotations", str(marks), "--model", str(tmp_path / "m.safetensors")]
    with at_hub(Hub("timm/resnet18.a1_in1k", {}), tmp_path, monkeypatch) as hub:
        assert main([*args, "--encoder", "resnet18"]) == 2
    shown, error = capsys.readouterr()
    assert shown.startswith(
        f"encoder resnet18: 47 MB from timm/resnet18.a1_in1k, licence: apache-2.0, see {hub.address}/"
    )
    assert error.count("\n") == 1
    assert "--yes" in error
    assert not any(path.endswith(".safetensors") for _, path in hub.asked)


def test_letters_that_a_terminal_cannot_show_are_spelt_out(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    say(argparse.Namespace(silent=False, json=False), "\u00a9 2026")
    assert terminal.buffer.getvalue() == b"\\xa9 2026\n"


def test_info_of_a_model_file(tmp_path, capsys):
    model_of(two_speed()).save(tmp_path / "m.safetensors")
    assert main(["info", str(tmp_path / "m.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "3 gland #e69f00, 200 stroma #56b4e9" in told
    assert "after 17 steps, instance balancing" in told
    assert "torch 2." in told


def test_bad_option_exits_2(tmp_path):
    assert run("train", "a.svs", "--model", "m.safetensors", "--seconds", "-3", cwd=tmp_path).returncode == 2
    assert run("train", "a.svs", cwd=tmp_path).returncode == 2


def test_train_and_predict_separate_glass_from_tissue_on_a_real_slide(cmu_svs, tmp_path):
    marks = qupath(
        tmp_path / "marks.geojson",
        [
            ("glass", (20, 20, 180, 120)),
            ("glass", (1900, 2500, 200, 250)),
            ("tissue", (900, 900, 200, 200)),
            ("tissue", (700, 1900, 200, 150)),
        ],
    )
    model, out = tmp_path / "m.safetensors", tmp_path / "out.ome.tif"
    trained = run(
        "train", cmu_svs, "--annotations", marks, "--model", model, "--mpp", 2, "--seconds", 8, "--json", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["classes"] == ["glass", "tissue"]
    predicted = run("predict", cmu_svs, "--model", model, "--output", out, "--json", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    labels = tifffile.imread(out, series=0, level=0)
    assert labels.shape == pytest.approx((2967 * 0.499 / 2, 2220 * 0.499 / 2), abs=1.5)
    with open_slide(cmu_svs) as slide:
        pixels = slide.read((0, 0, 2967, 2220), mpp=2.0)
    h, w = min(len(labels), len(pixels)), min(labels.shape[1], pixels.shape[1])
    bright = pixels[:h, :w].min(axis=2) > 200
    agreement = ((labels[:h, :w] == 1) == bright).mean()
    assert agreement >= 0.85


def test_convert_round_trip(tiny_slide, tmp_path):
    source = qupath(tmp_path / "a.geojson", [("stripes", (10, 20, 30, 40)), ("dots", (600, 500, 50, 60))])
    assert main(["convert", str(source), str(tmp_path / "a.sparseseg"), "--slide", str(tiny_slide)]) == 0
    assert (
        main(["convert", str(tmp_path / "a.sparseseg"), str(tmp_path / "b.geojson"), "--slide", str(tiny_slide)]) == 0
    )
    again = Annotations.from_geojson(tmp_path / "b.geojson", (1024, 1024))
    expected = np.zeros((1024, 1024), np.uint8)
    expected[20:60, 10:40] = 1
    expected[500:560, 600:650] = 2
    np.testing.assert_array_equal(again.read((0, 0, 1024, 1024)), expected)


def test_existing_prediction_is_not_overwritten(tiny_slide, tmp_path):
    out = tmp_path / "out.ome.tif"
    out.write_bytes(b"mine")
    model = tmp_path / "m.safetensors"
    marks = qupath(tmp_path / "m.geojson", [("stripes", (50, 50, 200, 60)), ("dots", (700, 500, 200, 60))])
    args = ["train", str(tiny_slide), "--annotations", str(marks), "--model", str(model), "--steps", "1", "--scratch"]
    assert main(args) == 0
    assert read_metadata(model).config.architecture == "scratch"
    assert main(["predict", str(tiny_slide), "--model", str(model), "--output", str(out)]) == 2
    assert out.read_bytes() == b"mine"
