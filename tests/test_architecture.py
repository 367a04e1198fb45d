"""Rules about the code itself: import cost, size caps, no Qt in the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.data import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "napari_sparseseg"
FILES = sorted(PACKAGE.rglob("*.py"))
LINES, CLASS, FUNCTION = 500, 450, 60


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_torch_nor_qt_nor_napari():
    code = (
        "import sys, napari_sparseseg as n\n"
        "assert n.__version__\n"
        "print([m for m in ('torch', 'timm', 'qtpy', 'napari', 'dask', 'zarr', 'numpy') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_session_and_slides_load_without_torch_or_qt():
    code = (
        "import sys\nfrom napari_sparseseg import Annotations, Session, open_slide\n"
        "print([m for m in ('torch', 'timm', 'qtpy', 'napari', 'PyQt6') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path):
    text = path.read_text()
    too_long = [f"{path.name}: {text.count(chr(10))} lines"] if text.count("\n") > LINES else []
    for node in ast.walk(ast.parse(text)):
        cap = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno
            if lines > cap:
                too_long.append(f"{node.name}: {lines} lines, at most {cap}")
    assert not too_long


def test_no_pickle_no_eval_no_napari_thread_worker():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(a.name for a in node.names)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id] if node.func.id in ("eval", "exec") else []
            bad = {"pickle", "cPickle", "dill", "thread_worker", "eval", "exec", "marshal", "shelve"}
            found += [f"{path.name}: {n}" for n in names if n in bad]
    assert not found


def test_required_top_level_and_nothing_beside_it():
    wanted = {"napari_sparseseg", "tests", "pyproject.toml", "README.md", "sample_data", ".github"}
    allowed = wanted | {"LICENSE", "CHANGELOG.md", "CITATION.cff", "docs", "examples", "mkdocs.yml"}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {line.split("/")[0] for line in listed}
    assert wanted <= top
    assert not {t for t in top - allowed if not t.startswith(".")}


def test_no_test_module_imports_another():
    """What several need is in tests/helpers; a module runs alone, and fixtures come from a conftest."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                last = module.rpartition(".")[2]
                if module.startswith("tests.") and (last.startswith("test_") or last == "conftest"):
                    found.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not found
