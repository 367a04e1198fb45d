"""What the README and the docs show is what runs, and what they point to is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from shapely import Polygon

import napari_sparseseg
from napari_sparseseg.cli import _parser
from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides import Slide
from tests.helpers.data import ROOT, two_textures

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language, text=README):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.S | re.M)


def commands(text):
    lines = [line.split("#")[0].strip() for block in blocks("(?:text|bash)", text) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("napari-sparseseg ")]


def test_first_two_bash_blocks_are_the_two_commands():
    demo, tests = (b.strip() for b in blocks("bash")[:2])
    assert "\n" not in demo + tests
    assert demo.endswith("napari-sparseseg demo")
    assert tests.endswith("pytest")


def test_readme_is_one_screen_with_one_table():
    assert README.startswith("![")
    assert len(README.splitlines()) <= 60
    assert len(re.findall(r"^\|[-|]+\|$", README, re.M)) == 1


def test_python_block_runs(tiny_slide, tmp_path, monkeypatch):
    shutil.copy(tiny_slide, tmp_path / "slide.svs")
    monkeypatch.chdir(tmp_path)
    code, pictures = blocks("python", (ROOT / "docs" / "how-to" / "console.md").read_text(encoding="utf-8"))
    assert pictures.startswith("from napari_sparseseg.gui.view.snapshot import")  # tests/gui/test_view.py uses them
    scope: dict[str, object] = {}
    exec(code.replace("seconds=60", "steps=1"), scope)
    assert isinstance(scope["labels"], np.ndarray)
    assert (tmp_path / "slide.ome.zarr").is_dir()
    assert (tmp_path / "study.sparseseg" / "project.json").exists()


def test_slide_backend_of_the_docs_reads_a_slide(tmp_path):
    code, _ = blocks("python", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    scope: dict[str, object] = {}
    exec(code, scope)
    pixels = two_textures(900)[:700]
    np.save(tmp_path / "a.npy", pixels)
    with Slide(scope["open_npy"](str(tmp_path / "a.npy"))) as slide:
        assert slide.shape == (700, 900)
        np.testing.assert_array_equal(slide.read((500, 600, 40, 50)), pixels[500:540, 600:650])
    (tmp_path / "b.npy").write_bytes(b"no array")
    with pytest.raises(SlideOpenError, match="Save it with numpy"):
        scope["open_npy"](str(tmp_path / "b.npy"))


def test_exporter_of_the_docs_writes_what_is_labelled(tmp_path):
    _, code = blocks("python", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    scope: dict[str, object] = {}
    exec(code, scope)
    annotations = napari_sparseseg.Annotations((500, 400), ["a", "b"])
    annotations.paint([(100, 100), (200, 300)], 20, 1)
    annotations.erase([(150, 200)], 5)
    annotations.fill_polygon([(300, 50), (300, 150), (400, 150), (400, 50)], 2, dense=True)
    scope["write_outlines"](annotations, tmp_path / "a.json", origin=(10.0, 20.0))
    rows = json.loads((tmp_path / "a.json").read_text())
    shapes = [(name, Polygon(rings[0], rings[1:])) for name, rings in rows]
    areas = {name: sum(shape.area for of, shape in shapes if of == name) for name in "ab"}
    assert areas == {"a": annotations.counts()[1], "b": annotations.counts()[2]}
    assert shapes[0][1].bounds == (30, 290, 130, 390)


def test_every_shell_line_parses():
    found = [command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
    assert len(found) >= 20
    for command in found:
        _parser().parse_args(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path = target.split("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"[{label}]({target})"
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).stat().st_size > 3_000


def test_files_that_the_docs_name_are_there():
    package = ROOT / "napari_sparseseg"
    missing = []
    for page in PAGES[2:]:
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", page.read_text(encoding="utf-8")):
            if "/" in name and not ((ROOT / name).exists() or (package / name).exists()):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_names_that_the_docs_place_in_a_file_are_there():
    pairs = []
    for page in PAGES[2:]:
        text = " ".join(page.read_text(encoding="utf-8").split())
        pairs += re.findall(r"`([A-Za-z_][\w.]*)` \(`([\w/]+\.py)`\)", text)
    assert len(pairs) > 30
    for name, file in pairs:
        *owner, last = name.split(".")
        code = (ROOT / "napari_sparseseg" / file).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{part}\b", code) for part in (*owner, last)), f"{name} is not in {file}"


def test_every_public_name_is_in_the_api():
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in napari_sparseseg.__all__ if not name.startswith("_"))


def test_buttons_that_the_tour_names_are_in_the_window():
    window = " ".join(p.read_text(encoding="utf-8") for p in (ROOT / "napari_sparseseg" / "gui").rglob("*.py"))
    pages = [ROOT / "docs" / "tour.md", ROOT / "docs" / "how-to" / "qupath.md"]
    found = [b for page in pages for b in re.findall(r"\*\*([A-Z][^*]+)\*\*", page.read_text(encoding="utf-8"))]
    assert len(found) > 10
    for button in found:
        for part in button.split(" > "):
            assert part in window, button


def test_decisions_that_the_code_names_are_written_down():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    written = {n for page in pages for n in re.findall(r"^## (D\d+)\.", page.read_text(encoding="utf-8"), re.M)}
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "napari_sparseseg").rglob("*.py"))
    named = set(re.findall(r"\bD\d{1,2}\b", code))
    assert len(named) > 15
    assert named <= written, sorted(named - written)
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"decisions/{page.name}" in listed for page in pages)
