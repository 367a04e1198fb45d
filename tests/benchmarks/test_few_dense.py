"""The pictures of `few_dense` are what it says they are, and its table divides by the right run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import common, few_dense
from tests.helpers.data import real_data

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_glands_are_fifteen_mosaics_of_fields_that_are_not_judged() -> None:
    real_data("ebhi_seg")
    glands = few_dense.glands(1)
    assert [f.image.shape for f in glands.train] == [(448, 448, 3)] * few_dense.FIELDS
    quarters = {f.image[y : y + 224, x : x + 224].tobytes() for f in glands.train for y in (0, 224) for x in (0, 224)}
    assert len(quarters) == 4 * few_dense.FIELDS
    assert not quarters & {f.image.tobytes() for f in glands.test}


def test_the_table_gives_shares_of_dense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    empty = dict.fromkeys(
        ("error", "error at 1", "temperature", "unsure_below", "sure", "right where sure", "share"), None
    )
    dice = {"strokes": 0.6, "dense": 0.8}
    rows = [{**empty, "task": "glands", "seed": 1, "labels": k, "dice": v, "seconds": 9.0} for k, v in dice.items()]
    few_dense.publish(rows)
    table = (tmp_path / "few-dense.md").read_text()
    assert "| glands | 1 | strokes | 0.600 | 0.750 |" in table
    assert "| glands | 1 | dense | 0.800 | 1.000 |" in table
