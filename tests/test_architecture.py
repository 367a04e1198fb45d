"""Rules about the code itself: import cost, size caps, no Qt in the core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.helpers.data import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "napari_sparseseg"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
CLASSES: dict[str, list[tuple[Path, ast.ClassDef]]] = defaultdict(list)
for _path, _tree in TREES.items():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.ClassDef):
            CLASSES[_node.name].append((_path, _node))

FILE_LINES, CLASS_LINES, FUNCTION_LINES, LEVELS, ROOT_MODULES, PRIVATE_REACHES = 500, 450, 60, 2, 10, 30


def lines_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines below the first."""
    return (node.end_lineno or 0) - node.lineno


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


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


def test_sizes():
    long = {}
    for path, tree in TREES.items():
        if (lines := path.read_text().count("\n")) > FILE_LINES:
            long[name_of(path)] = lines
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := lines_of(node)) > FUNCTION_LINES:
                long[f"{name_of(path)} {node.name}"] = lines
    assert not long


def own_bases(node: ast.ClassDef) -> list[ast.ClassDef]:
    """The package's classes that a class inherits from, where the name is that of one class only."""
    names = [b.id if isinstance(b, ast.Name) else b.attr if isinstance(b, ast.Attribute) else "" for b in node.bases]
    return [CLASSES[n][0][1] for n in names if len(CLASSES.get(n, ())) == 1]


def whole_lines(node: ast.ClassDef) -> int:
    return lines_of(node) + sum(whole_lines(base) for base in own_bases(node))


def depth(node: ast.ClassDef) -> int:
    return 1 + max((depth(base) for base in own_bases(node)), default=0)


def test_a_class_is_small_with_all_that_it_inherits():
    """A tower of small classes is one large class that is harder to read."""
    nodes = [node for found in CLASSES.values() for _, node in found]
    large = {n.name: whole_lines(n) for n in nodes if whole_lines(n) > CLASS_LINES}
    assert not large
    deep = {n.name for n in nodes if depth(n) > LEVELS and not n.name.endswith(("Error", "Stopped"))}
    assert not deep


def test_no_two_public_classes_share_a_name():
    shared = {name for name, found in CLASSES.items() if len(found) > 1 and not name.startswith("_")}
    assert not shared


def test_options_of_public_functions_are_typed():
    """``**options: Any`` finds a typo at run time only, and nothing completes it."""
    loose = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                rest = node.args.kwarg
                if rest and isinstance(rest.annotation, ast.Name) and rest.annotation.id == "Any":
                    loose.add(node.name)
    assert not loose


def test_text_of_the_package_has_no_dates():
    """What was measured when is in docs/decisions; a docstring says what holds."""
    dated = {path.stem for path in FILES if re.search(r"\b20\d\d-\d\d-\d\d\b", path.read_text())}
    assert not dated


def test_few_modules_are_at_the_root_of_the_package():
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_MODULES


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


def test_tests_hardly_reach_into_private_attributes():
    """What a test needs has a public name, or is passed as a value."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                found += [] if own else [f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"]
    assert len(found) <= PRIVATE_REACHES, found
