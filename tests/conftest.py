"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.faults import report
from tests.helpers.data import real_data, two_textures, write_slide

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `tune_process` does, for tests that import torch first
# Machines differ and are shared: a slow example is no failure. In CI the examples are the same every time.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report.count(item, outcome)
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """A failure whose text holds half a surrogate pair must not end the whole run: xdist cannot send it."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(k): _sendable(v) for k, v in value.items()}
    return type(value)(map(_sendable, value)) if isinstance(value, (list, tuple)) else value


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


@pytest.fixture(scope="session")
def cmu_svs() -> Path:
    """Aperio SVS, H&E, 2220 x 2967 px, 0.499 um per px."""
    return real_data("CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def ebhi_dir() -> Path:
    """120 H&E fields with dense masks."""
    return real_data("ebhi_seg")


@pytest.fixture(scope="session")
def tiny_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1024 x 1024 px at 1 um per px: two textures, the border at column 512."""
    return write_slide(tmp_path_factory.mktemp("slides") / "tiny.tif", two_textures())
