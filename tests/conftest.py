"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("LP_NUM_THREADS", "1")
# Machines differ and are shared: a slow example is no failure.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsaved work of tests stays out of the user's folders."""
    monkeypatch.setenv("NAPARI_SPARSESEG_HOME", str(tmp_path_factory.mktemp("state")))


def real_data(name: str) -> Path:
    """A file of the shared real data; absence skips, except in CI, where it fails."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing beside the checkout, and CI must have it")
        pytest.skip(f"real data {name} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def cmu_svs() -> Path:
    """Aperio SVS, H&E, 2220 x 2967 px, 0.499 um per px."""
    return real_data("CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def ebhi_dir() -> Path:
    """120 H&E fields with dense masks."""
    return real_data("ebhi_seg")
