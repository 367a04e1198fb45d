"""The table of faults in the README is what the suite prints."""

from __future__ import annotations

import re

from tests.faults import report
from tests.helpers.data import ROOT


def test_the_readmes_table_is_of_the_suites_columns_names_and_sums():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = report.markdown().splitlines()[:2]
    at = lines.index(head[0])
    table = [line for line in lines[at : at + 100] if line.startswith("|")]
    assert table[:2] == head
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    tests = [p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py")]
    known = {name for text in tests for name in re.findall(r'(?:mark\.fault|report\.row)\("([^"]+)"\)', text)}
    assert {name for name, *_ in rows[:-1]} <= known
    numbers = [[int(cell.replace(",", "")) for cell in row] for _, *row in rows]
    assert rows[-1][0] == "all"
    assert numbers[-1] == [sum(column) for column in zip(*numbers[:-1], strict=True)]
    assert all(lost == 0 for _, _, lost, _ in numbers)
