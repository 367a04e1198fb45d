"""Prints the table of what was killed and what was lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.faults import report


def pytest_terminal_summary(terminalreporter):
    if report.ROWS:
        path = Path(tempfile.gettempdir()) / "napari-sparseseg-faults.json"
        report.write_json(path)
        terminalreporter.write_sep("-", f"faults, also in {path}")
        terminalreporter.write_line(report.markdown())
