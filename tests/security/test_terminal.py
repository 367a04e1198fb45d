"""Names and metadata from files never control the terminal that shows them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from napari_sparseseg.cli.common import plain
from tests.helpers.data import two_textures, write_slide

if TYPE_CHECKING:
    from pathlib import Path

# set the title, clear the screen, a C1 control, delete, right-to-left override, carriage return
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egpj\rx"


def shell(*args: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "napari_sparseseg", *map(str, args)], capture_output=True, encoding="utf-8"
    )
    return done.returncode, done.stdout + done.stderr


def hostile_model(path: Path) -> Path:
    recipe = {
        "classes": [{"id": 1, "name": HOSTILE, "colour": "#112233"}, {"id": 2, "name": "b", "colour": "#112233"}],
        "mpp": 1.0, "encoder": HOSTILE, "sources": [{"name": HOSTILE}], "extra": {"versions": {HOSTILE: HOSTILE}},
    }  # fmt: skip
    metadata = {"format": "napari-sparseseg model", "version": "1", "recipe": json.dumps(recipe)}
    head = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    return path


def hostile_annotations(path: Path) -> Path:
    ring = [[10, 10], [90, 10], [90, 90], [10, 90], [10, 10]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": HOSTILE}, "objectType": "detection"},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def unprintable(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


@pytest.mark.parametrize("json_too", [False, True])
def test_information_of_a_model_is_plain(tmp_path: Path, json_too: bool):
    code, text = shell("info", hostile_model(tmp_path / "m.safetensors"), *(["--json"] if json_too else []))
    assert code == 0
    assert "owned" in text
    assert not unprintable(text)


def test_an_error_about_a_file_name_is_plain(tmp_path: Path):
    code, text = shell("info", tmp_path / "\x1b[2J\u202enone.tif")
    assert code == 2
    assert "none.tif" in text
    assert not unprintable(text)


def test_what_is_written_and_left_out_is_plain(tmp_path: Path):
    slide = write_slide(tmp_path / "slide.tif", two_textures(256))
    source, target = hostile_annotations(tmp_path / "in.geojson"), tmp_path / "\x1b[31mout.geojson"
    code, text = shell("convert", source, target, "--slide", slide)
    assert code == 0
    assert target.exists()
    assert "out.geojson" in text
    assert not unprintable(text)


def test_letters_of_every_script_stay():
    assert plain("Gewebe µm – 組織 – ткань") == "Gewebe µm – 組織 – ткань"
    assert plain("a\x1bb\nc") == "a\\x1bb\\nc"
