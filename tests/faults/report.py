"""The table: fault, rounds, lost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

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


def markdown() -> str:
    """All rows as a table."""
    lines = ["| fault | rounds | kept promises | lost | step under way gone |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {r.fault} | {r.rounds} | {r.promised:,} | {r.lost} | {r.cut} |" for r in ROWS.values()]
    total = [sum(getattr(r, name) for r in ROWS.values()) for name in ("rounds", "promised", "lost", "cut")]
    lines.append(f"| all | {total[0]} | {total[1]:,} | {total[2]} | {total[3]} |")
    return "\n".join(lines)


def write_json(path: Path) -> None:
    """All rows as JSON."""
    path.write_text(json.dumps([asdict(r) for r in ROWS.values()], indent=1))
