"""What the README shows is what runs."""

from __future__ import annotations

import re
import shlex
import shutil

import numpy as np

from napari_sparseseg.cli import _parser
from tests.helpers.data import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_first_two_bash_blocks_are_the_two_commands():
    demo, tests = (b.strip() for b in blocks("bash")[:2])
    assert "\n" not in demo + tests
    assert demo.endswith("napari-sparseseg demo")
    assert tests.endswith("pytest")


def test_python_block_runs(tiny_slide, tmp_path, monkeypatch):
    shutil.copy(tiny_slide, tmp_path / "slide.svs")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    scope: dict[str, object] = {}
    exec(code.replace("seconds=60", "steps=1"), scope)
    assert isinstance(scope["labels"], np.ndarray)
    assert (tmp_path / "slide.ome.zarr").is_dir()
    assert (tmp_path / "study.sparseseg" / "project.json").exists()


def test_every_shell_line_parses():
    lines = [line.split("#")[0].strip() for block in blocks("text") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("napari-sparseseg ")]
    assert len(commands) >= 4
    for command in commands:
        _parser().parse_args(command)


def test_pictures_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 10_000
