"""The table: fault, rounds, lost. ``pytest -m fault`` runs every fault and prints it as Markdown.

Tests that kill count what a child was promised and what was found; every other test with the mark ``fault(name)`` is a
round with one promise, that nothing is lost of what it checks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ROWS: dict[str, Row] = {}


@dataclass(slots=True)
class Row:
    """What was tried, how often, and what was lost of what had been promised."""

    fault: str
    rounds: int = 0
    promised: int = 0
    lost: int = 0
    cut: int = 0
    """Rounds in which the step under way was not there afterwards, which is allowed."""


def row(fault: str) -> Row:
    """The row of a fault."""
    return ROWS.setdefault(fault, Row(fault))


def count(item: pytest.Item, outcome: pytest.TestReport) -> None:
    """Count a test with the mark ``fault(name)`` as a round."""
    mark = item.get_closest_marker("fault")
    if mark is not None and mark.args and outcome.when == "call" and not outcome.skipped:
        counted = row(mark.args[0])
        counted.rounds, counted.promised = counted.rounds + 1, counted.promised + 1
        counted.lost += outcome.failed


def markdown() -> str:
    """All rows as a table."""
    lines = ["| fault | rounds | promises checked | lost | step under way gone |", "|---|---:|---:|---:|---:|"]
    rows = sorted(ROWS.values(), key=lambda r: (not r.fault.startswith("kill"), r.fault))
    lines += [f"| {r.fault} | {r.rounds} | {r.promised:,} | {r.lost} | {r.cut} |" for r in rows]
    total = [sum(getattr(r, name) for r in ROWS.values()) for name in ("rounds", "promised", "lost", "cut")]
    lines.append(f"| all | {total[0]} | {total[1]:,} | {total[2]} | {total[3]} |")
    return "\n".join(lines)


def write_json(path: Path) -> None:
    """All rows as JSON."""
    path.write_text(json.dumps([asdict(r) for r in ROWS.values()], indent=1))
