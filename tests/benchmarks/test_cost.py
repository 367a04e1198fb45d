"""`python -m pytest tests/benchmarks/test_cost.py -s`: a hundred times the strokes are not a hundred times the wait."""

from __future__ import annotations

import pytest

from tests.benchmarks import cost


@pytest.mark.timeout(0)
def test_growth_with_strokes() -> None:
    few, many = cost.main(["--strokes", "10", "1000", "--classes", "5", "--sides", "--encoders"])
    assert many["stroke to model"] < 20 * few["stroke to model"]
