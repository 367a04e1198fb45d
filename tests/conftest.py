"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import settings

from tests.faults import report

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `backend.import_torch` does, for tests that import torch first
# Machines differ and are shared: a slow example is no failure.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report.count(item, outcome)
    return outcome


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``-n 2 --dist loadgroup`` a file's tests stay together, and there is one window at a time."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "window" if "gui" in item.path.parts else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of what was killed, filled, taken away, and what was lost."""
    if report.ROWS:
        path = Path(tempfile.gettempdir()) / "napari-sparseseg-faults.json"
        report.write_json(path)
        terminalreporter.write_sep("-", f"faults, also in {path}")
        terminalreporter.write_line(report.markdown())


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsaved work of tests stays out of the user's folders."""
    monkeypatch.setenv("NAPARI_SPARSESEG_HOME", str(tmp_path_factory.mktemp("state")))


def real_data(name: str) -> Path:
    """A file of the shared real data; absence skips. In CI it fails, but where a workflow says that it has none."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("SPARSESEG_NO_REAL_DATA") == "1":
            pytest.skip(f"real data {name} is not where this runs: SPARSESEG_NO_REAL_DATA=1")
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


def two_textures(side: int = 1024, seed: int = 0) -> np.ndarray:
    """uint8 (side, side, 3): the left half coarse pink stripes, the right half fine violet dots on the same ground."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), (225, 170, 200), np.float32)
    y, x = np.mgrid[:side, :side]
    stripes = (np.sin(y / 9) > 0) & (x < side // 2)
    dots = (np.hypot(y % 16 - 8, x % 16 - 8) < 4) & (x >= side // 2)
    image[stripes] = (190, 110, 160)
    image[dots] = (110, 70, 150)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, mpp: float | None = 1.0) -> Path:
    """A tiled pyramidal TIFF with resolution tags, as a generic scanner writes it."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        for step in (2, 4):
            options |= {"subfiletype": 1}
            if mpp is not None:
                options |= {"resolution": (1e4 / mpp / step, 1e4 / mpp / step)}
            writer.write(np.ascontiguousarray(image[::step, ::step]), **options)
    return path


@pytest.fixture(scope="session")
def tiny_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1024 x 1024 px at 1 um per px: two textures, the border at column 512."""
    return write_slide(tmp_path_factory.mktemp("slides") / "tiny.tif", two_textures())
