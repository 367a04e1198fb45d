"""What scripts rely on: the names at the package's top, their examples, and keywords that match the settings."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import fields
from typing import get_type_hints

import pytest

import napari_sparseseg
from napari_sparseseg.config import TrainConfig, TrainSettings
from napari_sparseseg.prediction.slide import PredictOptions, PredictSettings
from tests.helpers.data import ROOT

NAMES = {
    "open_slide", "Slide", "Annotations", "load_annotations", "save_annotations", "detect_tissue", "Session",
    "TrainConfig", "PredictOptions", "CleanUp", "load_model", "SparseSegError",
}  # fmt: skip
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "napari_sparseseg").rglob("*.py")
    if "    >>> " in path.read_text()
)


def test_the_public_names_are_there_and_no_others():
    assert {name for name in dir(napari_sparseseg) if not name.startswith("_")} == NAMES
    with pytest.raises(AttributeError, match="no attribute 'slide'"):
        _ = napari_sparseseg.slide


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_public_name_has_an_example(name):
    assert "    >>> " in (getattr(napari_sparseseg, name).__doc__ or "")


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed


def test_keywords_of_training_are_the_fields_of_its_settings():
    """But for the balancing, which `Session.train` takes by position."""
    hints, known = get_type_hints(TrainSettings), get_type_hints(TrainConfig)
    assert hints == {f.name: known[f.name] for f in fields(TrainConfig) if f.name != "balancing"}


def test_keywords_of_prediction_are_the_fields_of_its_options():
    assert PredictSettings.__annotations__.keys() == {f.name for f in fields(PredictOptions)}
