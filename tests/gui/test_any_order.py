"""Any order of what a hand does in the window: undone to the end, the very label image of the beginning is back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qtpy.QtWidgets import QPushButton

from napari_sparseseg.gui.sections.classes.table import NAME
from tests.helpers.answers import answer_file
from tests.helpers.geojson import qupath
from tests.helpers.mouse import Mouse, line, pump
from tests.helpers.panel import click, click_cell, open_from_menu, open_slide, rename
from tests.helpers.smooth_model import CLASSES, SmoothModel
from tests.helpers.waiting import wait_until
from tests.helpers.windows import opened_viewer

SIDE = 1024
PLACE = st.tuples(st.integers(60, SIDE - 60), st.integers(60, SIDE - 60))
ROW = st.integers(0, 2)
ACTS = st.one_of(
    st.tuples(st.just("paint"), st.integers(1, 3), PLACE, PLACE),
    st.tuples(st.just("erase"), PLACE, PLACE),
    st.tuples(st.just("fill"), st.integers(1, 3), PLACE),
    st.tuples(st.just("snap"), PLACE, PLACE),
    st.tuples(st.just("accept"), PLACE),
    st.tuples(st.just("add_class")),
    st.tuples(st.just("remove_class"), ROW),
    st.tuples(st.just("rename_class"), ROW, st.integers(0, 9)),
    st.tuples(st.just("import_file"), PLACE),
    st.tuples(st.just("bin_layer"), st.sampled_from(["layer", "dense_layer"])),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
    st.tuples(st.just("reopen")),
)


class Hand:
    """What it does, each as in the window; `image` is what is drawn in the end."""

    def __init__(self, viewer, panel, path, folder) -> None:
        self.viewer, self.panel, self.path, self.folder = viewer, panel, path, folder
        self.mouse = Mouse(viewer)
        self.begin()

    def begin(self) -> None:
        self.first = self.image

    @property
    def image(self) -> np.ndarray:
        return self.panel.session.annotations.read((0, 0, SIDE, SIDE)).copy()

    @property
    def scribbles(self):
        return self.panel.slides.binding.scribbles

    def settle(self) -> None:
        pump(0.05)
        wait_until(lambda: not self.panel.busy, 20)

    def drag(self, p, q) -> None:
        self.mouse.drag(line(self.mouse.canvas(*p), self.mouse.canvas(*q), 6))
        self.settle()

    def paint(self, class_id, p, q) -> None:
        self.mouse.key(str(class_id))
        self.mouse.key("P")
        self.drag(p, q)

    def erase(self, p, q) -> None:
        self.mouse.key("E")
        self.drag(p, q)

    def fill(self, class_id, p) -> None:
        self.mouse.key(str(class_id))
        self.mouse.key("F")
        self.mouse.click(self.mouse.canvas(*p))
        self.settle()

    def snap(self, p, q) -> None:
        self.mouse.key("P")
        self.mouse.key("S")
        self.drag(p, q)
        self.mouse.key("S")
        self.settle()

    def accept(self, p) -> None:
        click(self.panel.predict.accept)
        self.mouse.click(self.mouse.canvas(*p))
        self.settle()
        if self.panel.predict.accept.isChecked():
            click(self.panel.predict.accept)

    def add_class(self) -> None:
        click(self.panel.classes.add)
        self.mouse.click((3, 3))  # beside the slide: the name that is offered is taken

    def remove_class(self, row) -> None:
        if len(self.panel.session.classes) > row + 1:
            click_cell(self.panel, row, NAME)
            click(self.panel.classes.remove)
            self.settle()

    def rename_class(self, row, number) -> None:
        if len(self.panel.session.classes) > row:
            rename(self.panel, row, f"name {number}")

    def import_file(self, p) -> None:
        y, x = p
        path = qupath(self.folder / "import.geojson", [("from QuPath", (x - 40, y - 40, 80, 80))])
        answer_file(path)
        click(self.panel.slide.import_button)
        self.settle()

    def bin_layer(self, which) -> None:
        self.viewer.layers.selection.active = getattr(self.scribbles, which)
        bins = [b for b in self.panel.window().findChildren(QPushButton) if b.property("mode") == "delete_button"]
        click(bins[0])
        wait_until(lambda: not self.scribbles.closed and self.scribbles.layer in self.viewer.layers, 10)

    def undo(self) -> None:
        self.mouse.key("Z", ctrl=True)
        self.settle()

    def redo(self) -> None:
        self.mouse.key("Z", ctrl=True, shift=True)
        self.settle()

    def reopen(self) -> None:
        before = self.image
        click(self.panel.slide.close_slide)
        wait_until(lambda: self.panel.slides.binding is None and not self.panel.busy, 20)
        open_slide(self.panel, self.path)
        np.testing.assert_array_equal(self.image, before)
        self.begin()  # what was done before can no longer be undone

    def undo_all(self) -> int:
        """Undo to the end; returns how many steps there were."""
        history = self.panel.session.history
        for steps in range(60):
            if not history.next_undo:
                return steps
            self.undo()
        raise AssertionError(f"still to undo: {history.next_undo}")


@pytest.fixture(scope="module")
def hand(qapp, tiny_slide, tmp_path_factory):
    with opened_viewer(1300, 800) as viewer:
        panel = open_from_menu(viewer)
        open_slide(panel, tiny_slide)
        panel.session.classes = CLASSES
        panel.session.use_model(SmoothModel())
        wait_until(lambda: panel.prediction.display.layer is not None, 20)
        yield Hand(viewer, panel, tiny_slide, tmp_path_factory.mktemp("imported"))
        panel.shut_down()


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(acts=st.lists(ACTS, min_size=3, max_size=9))
def test_undone_to_the_end_the_image_of_the_beginning_is_there(hand, acts):
    hand.undo_all()
    hand.begin()
    for name, *values in acts:
        getattr(hand, name)(*values)
    last = hand.image
    steps = hand.undo_all()
    np.testing.assert_array_equal(hand.image, hand.first)
    for _ in range(steps):
        hand.redo()
    np.testing.assert_array_equal(hand.image, last)
