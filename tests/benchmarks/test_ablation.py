"""`python -m pytest tests/benchmarks/test_ablation.py -s`: no neighbour of the defaults is clearly better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.benchmarks import ablation, common
from tests.helpers.data import real_data

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_are_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def row_of(module: str, settings: dict[str, Any]) -> dict[str, Any]:
        made.append(settings)
        if settings["seed"] == 2 and len(made) < 4:
            raise RuntimeError("killed")
        return {**settings, "mean": 0.1 * settings["seed"], "module": module}

    monkeypatch.setattr(common, "row_of", row_of)
    wanted = [{"task": "a", "seed": k} for k in (1, 2, 3)]
    with pytest.raises(RuntimeError, match="killed"):
        common.rows_of("m", wanted, tmp_path / "rows.jsonl", 1)
    rows = common.rows_of("m", wanted, tmp_path / "rows.jsonl", 2)
    assert [(r["seed"], r["mean"]) for r in rows] == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
    assert sorted(s["seed"] for s in made) == [1, 2, 2, 3]


@pytest.mark.timeout(0)
def test_no_neighbour_is_clearly_better() -> None:
    real_data("ebhi_seg")
    rows = ablation.main([])
    known = {(r["task"], r["variant"], r["seed"]): r["mean"] for r in rows}
    better = {}
    for variant in ablation.VARIANTS:
        gains = [v - known[t, ablation.DEFAULT, s] for (t, name, s), v in known.items() if name == variant]
        error = np.std(gains, ddof=1) / math.sqrt(len(gains))
        if np.mean(gains) > max(0.01, 2 * error):
            better[variant] = gains
    assert better == {}
