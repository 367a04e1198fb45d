"""The scripts in `examples/` run as they are, in an empty folder."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.helpers.data import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MADE = {
    "balanced_loss_in_torch": [],
    "console_session": ["study.sparseseg/project.json", "study.sparseseg/models/model.safetensors"],
    "convert_annotations": ["all.sparseseg", "for-qupath.geojson", "for-asap.xml", "labels.ome.tif", "labels.ome.zarr"],
    "predict_for_qupath": ["prediction.ome.tif", "regions.geojson", "areas.csv", "scribbles.geojson"],
    "train_on_several_slides": ["tissue.safetensors"],
}
"""What each of them leaves behind."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    for name in MADE[path.stem]:
        assert (tmp_path / name).exists()


def test_every_example_is_in_the_docs():
    page = (ROOT / "docs" / "how-to" / "console.md").read_text(encoding="utf-8")
    assert all(f"`examples/{path.name}`" in page for path in EXAMPLES)
    assert len(EXAMPLES) >= 5
