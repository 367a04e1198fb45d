"""`python -m pytest tests/benchmarks/test_peers.py -s`: ahead of convpaint with what it can use offline; issue 5."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import peers


@pytest.mark.timeout(0)
def test_ahead_of_convpaint() -> None:
    if not peers.python_of("convpaint").exists():
        pytest.skip("napari-convpaint has no environment yet: python -m tests.benchmarks.peers --install")
    rows = peers.main(["--sides"])
    for classes in (2, 7):
        found = {
            tool: np.mean([r["dice"] for r in rows if r["tool"] == tool and r["classes"] == classes])
            for tool in ("ours", "convpaint default", "convpaint pyramid")
        }
        assert found["ours"] >= 1.1 * max(found["convpaint default"], found["convpaint pyramid"]), found
