"""`python -m pytest tests/benchmarks/test_annotator.py -s`: correcting helps, with every policy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import annotator


@pytest.mark.timeout(0)
def test_corrections_help() -> None:
    rows = annotator.main(["--strokes", "6", "--seeds", "1"])
    for policy in annotator.POLICIES:
        own = [r for r in rows if r["policy"] == policy]
        first, last = ([r["here"] for r in own if r["round"] == t] for t in (0, 6))
        assert np.mean(last) > np.mean(first), policy
