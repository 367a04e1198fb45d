"""`python -m pytest tests/benchmarks/test_peers.py -s`: ahead of convpaint with what it can use offline; issue 9."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.benchmarks import common, peers

if TYPE_CHECKING:
    from pathlib import Path


def test_new_rows_take_the_place_of_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    known = {"tool": "ours", "variant": "60 s", "classes": 2, "seed": 0}
    old = [{**known, "dice": 0.1, "peak MB": 700}, {**known, "seed": 1, "failed": "no memory"}]
    (tmp_path / "peers.json").write_text(json.dumps({"data": old}))
    found = peers.merged([{**known, "dice": 0.8}, {**known, "seed": 1, "dice": 0.7}])
    assert found == [{**known, "dice": 0.8, "peak MB": 700}, {**known, "seed": 1, "dice": 0.7}]


def test_forest_and_ours_are_read_from_the_report_of_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    row = {"classes": 7, "seed": 2, "forest": 0.2, "forest seconds": 40.0, "ours": {"3.0": 0.3, "60.0": 0.4}}
    report = {"machine": {"date": "2026-11-26"}, "data": [row]}
    (tmp_path / "learner-vs-forest.json").write_text(json.dumps(report))
    found = {(r["tool"], r["variant"]): (r["dice"], r["fit CPU seconds"]) for r in peers.from_learner()}
    assert found == {("forest", "default"): (0.2, 40.0), ("ours", "3 s"): (0.3, 3.0), ("ours", "60 s"): (0.4, 60.0)}


@pytest.mark.timeout(0)
def test_ahead_of_convpaint() -> None:
    if not peers.python_of("convpaint").exists():
        pytest.skip("napari-convpaint has no environment yet: python -m tests.benchmarks.peers --install")
    rows = peers.main(["--tools", "convpaint", "ours", "--sides"])
    for classes in (2, 7):
        ours, *others = (
            np.mean([r["dice"] for r in rows if (r["tool"], r["variant"], r["classes"]) == (tool, variant, classes)])
            for tool, variant in (("ours", "60 s"), ("convpaint", "default"), ("convpaint", "pyramid"))
        )
        assert ours >= 1.1 * max(others), (classes, ours, others)
