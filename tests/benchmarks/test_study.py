"""`python -m pytest tests/benchmarks/test_study.py -s`: the quick grid and the target of the paper's study."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import common, study
from tests.conftest import real_data


@pytest.mark.timeout(0)
def test_few_dense_labels_come_close_to_all_dense(tmp_path, monkeypatch) -> None:
    real_data("ebhi_seg")
    monkeypatch.setattr(common, "RESULTS", tmp_path)  # so that no earlier run counts
    found = study.ratios(study.main(["--grid", "quick"]))
    assert {k: round(float(np.mean(v)), 3) for k, v in found.items() if np.mean(v) < study.TARGET} == {}


def test_no_case_and_no_picture_is_on_both_sides() -> None:
    real_data("ebhi_seg")
    for seed in range(3):
        found = study.overlap(seed)
        assert found["cases on both sides"] == []
        assert found["most alike"] < study.ALIKE
