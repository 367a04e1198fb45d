"""A network of another program in the window: opened with Load model, shown live, replaced by training."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from tests.helpers.answers import answer_file
from tests.helpers.mouse import pump
from tests.helpers.onnx_files import brightest, write_onnx
from tests.helpers.panel import click
from tests.helpers.waiting import wait_until


@pytest.fixture
def panel(viewer, tmp_path):
    """The panel with a slide that is red on the left and blue on the right."""
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[:, :512, 0], pixels[:, 512:, 2] = 250, 200
    tifffile.imwrite(
        tmp_path / "slide.tif", pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3
    )
    _, widget = viewer.window.add_plugin_dock_widget("napari-sparseseg")
    widget.slides.open(tmp_path / "slide.tif")
    wait_until(lambda: widget.slides.binding is not None and not widget.busy, 20)
    pump(0.3)
    yield widget
    widget.shut_down()


def test_it_is_opened_and_shown_and_its_assumptions_are_said(viewer, panel, tmp_path):
    click(panel.train.more.heading)
    answer_file(write_onnx(tmp_path / "brightest.onnx", brightest()))
    click(panel.train.settings.load)
    live = panel.prediction.display
    wait_until(lambda: live.layer is not None and live.layer.label_at_world((500.0, 100.0)), 30)
    wait_until(lambda: live.layer.label_at_world((500.0, 900.0)), 30)
    assert [live.layer.label_at_world((500.0, x)) for x in (100.0, 900.0)] == [1, 3]
    assert [c.name for c in panel.session.classes] == ["class 1", "class 2", "class 3"]
    assert "does not say what its input is" in panel.session.status.message


def test_one_that_cannot_be_opened_is_said_and_changes_nothing(viewer, panel, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no network")
    click(panel.train.more.heading)
    answer_file(bad)
    click(panel.train.settings.load)
    wait_until(lambda: "is not an ONNX file" in panel.header.error.text.text(), 20)
    assert panel.session.model is None
