"""napari as a person starts it: its command in a fresh home, on a desktop, by mouse and keys alone.

Each test is named after what people met (D1 to D21 are defects that were found this way). One window serves all tests
that need no fresh start.
"""

from __future__ import annotations

import json
import time

import pytest

from tests.helpers.desktop import MUST_RUN, Desktop, Napari, missing_programs

if missing_programs() and not MUST_RUN:
    pytest.skip(missing_programs(), allow_module_level=True)

PANEL = "Scribbles (napari-sparseseg)"
STROKES = "len(panel.session.annotations.strokes)"
LAYER = "panel.slides.binding.scribbles.layer"
NAME = 3
"""Column of the class table."""


@pytest.fixture(scope="module")
def desktop():
    made = Desktop()
    yield made
    made.close()


def started(desktop, home, *arguments, **environment) -> Napari:
    app = Napari(desktop, home, *arguments, environment=environment)
    app.menu("Plugins", PANEL)
    app.until("panel is not None and panel.complete")
    return app


def open_by_dialog(app, path) -> None:
    app.click("panel.slide.open")
    app.choose_file(path)
    app.until("panel.slides.binding is not None and not panel.busy")
    time.sleep(0.3)


@pytest.fixture(scope="module")
def window(desktop, tmp_path_factory, tiny_slide):
    """A window with the panel from the menu and a slide from its dialog."""
    app = started(desktop, tmp_path_factory.mktemp("home"))
    app.ask("window.showMaximized()")
    open_by_dialog(app, tiny_slide)
    yield app
    app.kill()


def tidy(app) -> None:
    """Undo every stroke, by keys over the slide."""
    app.hover(900, 900)
    for _ in range(app.ask(STROKES)):
        app.key("ctrl+z")
    app.until(f"{STROKES} == 0", 5)


def test_strokes_by_mouse_are_drawn_in_the_class_of_the_key(window):
    window.hover(300, 200)
    window.key("2")
    window.stroke((300, 200), (300, 400))
    window.key("1")
    window.stroke((500, 600), (500, 800))
    assert window.ask("[s.class_id for s in panel.session.annotations.strokes]") == [2, 1]
    tidy(window)


def test_keys_work_over_the_slide_after_a_click_in_the_class_table(window):
    """D8."""
    window.click(f"cell(panel.classes.table, 1, {NAME})")
    window.hover(400, 400)
    window.key("1")
    assert window.ask(f"int({LAYER}.selected_label)") == 1


def glide(app, start, end) -> None:
    """Move the mouse over the slide from one level-0 pixel (y, x) to another, as a hand does."""
    (x0, y0), (x1, y1) = app.at(*start), app.at(*end)
    for k in range(13):
        app._do("mousemove", round(x0 + (x1 - x0) * k / 12), round(y0 + (y1 - y0) * k / 12), "sleep", 0.015)
    time.sleep(0.1)


def test_keys_over_the_slide_do_not_go_into_a_name_that_is_being_typed(window):
    """A mouse that is only pushed aside takes nothing from who types."""
    window.click("panel.classes.add")
    window.key("ctrl+a")
    window.write("der")
    glide(window, (300, 300), (300, 304))
    window.write("mis 2")
    glide(window, (300, 300), (700, 700))
    window.key("2")
    assert window.ask("panel.session.classes[-1].name") == "dermis 2"
    assert window.ask(f"int({LAYER}.selected_label)") == 2
    window.key("m")
    window.until("notes() == ['Classes are added in the class table.']", 5)
    window.key("ctrl+z", "ctrl+z")
    window.until("len(panel.session.classes) == 2", 5)


def test_a_copy_of_the_scribbles_leads_back_to_them(window):
    window.ask(f"setattr(viewer.layers.selection, 'active', {LAYER})")
    commands = "__import__('napari')._app_model.get_app_model().commands"
    window.ask(f"bool({commands}.execute_command('napari.layer.duplicate'))")  # of the layer list's context menu
    window.until(f"viewer.layers.selection.active is not {LAYER} and len(viewer.layers) == 4", 10)
    window.hover(300, 200)
    window.key("2")
    window.stroke((300, 200), (300, 400))
    assert window.ask("[s.class_id for s in panel.session.annotations.strokes]") == [2]
    tidy(window)
    window.ask("viewer.layers.remove(next(la for la in viewer.layers if la.name.endswith('copy')))")


def test_add_stays_under_the_pointer_as_the_table_grows(window):
    window.ask("window.showNormal() or window.resize(1200, 700)")
    window.until("window.height() == 700", 5)
    window.click("panel.classes.add")
    window.key("Return")
    window._middle("panel.classes.add")
    for _ in range(3):
        before = window.ask("place(panel.classes.add)")
        window.click("panel.classes.add")
        window.key("Return")
        window._middle("panel.classes.add")  # waits until it rests
        assert window.ask("place(panel.classes.add)") == before
    assert window.ask("len(panel.session.classes)") == 6
    window.hover(400, 400)
    window.key(*["ctrl+z"] * 4)
    window.until("len(panel.session.classes) == 2", 5)
    window.ask("window.showMaximized()")


def test_space_over_the_slide_after_train_neither_draws_nor_presses(window):
    """D9: the focus is on the button that was clicked last."""
    window.click("panel.train.train")  # refused: nothing is drawn
    window.until("panel.header.error.isVisible()", 5)
    window.hover(400, 400)
    window.key("space")
    assert window.ask("panel.session.status.state") == "idle"
    assert window.ask(STROKES) == 0


def test_train_stays_under_the_pointer_whatever_appears(window):
    before = window.ask("place(panel.train.train)")
    window.click("panel.train.train")
    window.until("panel.header.error.isVisible()", 5)
    assert window.ask("place(panel.train.train)") == before
    window.click("panel.header.error.dismiss")
    window.until("not panel.header.error.isVisible()", 5)
    assert window.ask("place(panel.train.train)") == before


def test_class_key_on_the_image_layer_draws_and_moves_nothing(window):
    """D5: there, key 2 is napari's transform mode."""
    extent = "viewer.layers[0].extent.world.tolist()"
    before = window.ask(extent)
    window.ask("setattr(viewer.layers.selection, 'active', viewer.layers[0])")
    window.hover(400, 300)
    window.key("2")
    window.stroke((400, 300), (430, 500))
    assert window.ask(extent) == before
    assert window.ask("[s.class_id for s in panel.session.annotations.strokes]") == [2]
    tidy(window)


def test_the_scribble_layer_comes_back_from_the_bin(window):
    """D12."""
    window.stroke((300, 200), (300, 400))
    window.ask(f"setattr(viewer.layers.selection, 'active', {LAYER})")
    window.click("[b for b in window.findChildren(QPushButton) if b.property('mode') == 'delete_button'][0]")
    window.until(f"{LAYER} in list(viewer.layers)", 5)
    assert window.ask(STROKES) == 1
    window.stroke((600, 200), (600, 400))
    assert window.ask(STROKES) == 2
    tidy(window)


def test_importing_the_file_of_another_slide_keeps_what_is_drawn(window, tmp_path):
    """D1."""
    window.stroke((300, 200), (300, 400))
    far = [[90000, 90000], [90100, 90000], [90100, 90100], [90000, 90000]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [far]}, "properties": {}}
    feature["properties"] = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    other = tmp_path / "other.geojson"
    other.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    window.click("panel.slide.import_button")
    window.choose_file(other)
    window.until("panel.header.error.isVisible() and not panel.busy", 10)
    assert "lies on this slide" in window.ask("panel.header.error.text.text()")
    assert window.ask(STROKES) == 1
    tidy(window)


def test_a_double_click_on_train_trains_and_the_console_keeps_the_window_alive(window):
    """D17, and `train(wait=True)`: while it waits, Stop can be pressed."""
    for key, x in (("1", 200), ("2", 700)):
        window.hover(300, x)
        window.key(key)
        window.stroke((300, x), (700, x + 60))
    window.click("panel.train.train", double=True)
    window.until("panel.session.status.model_version > 0", 60)
    assert window.ask("panel.session.status.state") == "training"
    window.until("any(layer.name.startswith('prediction') for layer in viewer.layers)", 20)
    window.click("panel.train.stop")
    window.until("panel.session.status.state == 'idle'", 20)
    window.key("ctrl+shift+c")
    window.until("window._qt_viewer.dockConsole.isVisible()", 20)
    time.sleep(0.5)
    window.click("window._qt_viewer.dockConsole")
    window.write("session.train(seconds=300, wait=True); print('it returned')")
    window.key("Return")
    window.until("panel.session.status.state == 'training'", 30)
    window.click("panel.train.stop")
    window.until("panel.session.status.state == 'idle'", 30)
    window.key("ctrl+shift+c")
    tidy(window)


def test_every_way_leads_to_the_one_panel(window):
    """D2: menu, key and command palette."""
    window.hover(400, 400)
    live = window.ask("panel.predict.live.isChecked()")
    window.key("shift+d")
    window.until(f"panel.predict.live.isChecked() is not {live}", 5)
    window.menu("View", "Command Palette")
    time.sleep(0.3)
    window.write("Add a class")
    time.sleep(0.3)
    window.key("Return")
    window.until("len(panel.session.classes) == 3", 10)
    window.key("Return")
    assert window.ask("len(panels())") == 1


def test_the_real_sample_opens_from_the_file_menu_with_its_scribbles(window):
    window.menu("File", "Open Sample", "napari-sparseseg", "Real slide (skin) with scribbles")
    window.until("panel.session.slide.path.endswith('CMU-1-Small-Region.svs') and not panel.busy", 20)
    window.until("'keratin' in [c.name for c in panel.session.classes]", 10)
    drawn = window.ask(STROKES)
    assert drawn > 10
    assert window.ask("notes()") == []
    layers = window.ask("len(viewer.layers)")
    window.menu("File", "Open Sample", "napari-sparseseg", "Real slide (skin) with scribbles")
    window.until("any('open already' in text for text in notes())", 20)
    assert window.ask("len(viewer.layers)") == layers
    assert window.ask(STROKES) == drawn


def test_a_panel_closed_and_opened_again_begins_at_its_top(window):
    window.click("closer()")
    window.until("panels() == []", 10)
    window.menu("Plugins", PANEL)
    window.until("panel is not None", 20)
    assert window.ask("place(panel.header)[1] == place(panels()[0])[1]")
    open_again = "panel.slides.binding is not None and not panel.busy"
    window.menu("File", "Open Sample", "napari-sparseseg", "Real slide (skin) with scribbles")
    window.until(open_again, 20)


def test_a_second_window_has_its_own_panel_and_is_not_offered_what_the_first_draws(desktop, tmp_path, tiny_slide):
    """Two windows side by side, where napari's and our column would leave nothing for the slide."""
    app = started(desktop, tmp_path)
    open_by_dialog(app, tiny_slide)
    app.stroke((300, 200), (300, 400))
    app.ask("str(__import__('napari').Viewer())")
    app.until("window.isVisible() and panels()[0].viewer.window._qt_window is not window", 20)
    app.ask("window.setGeometry(100, 60, 790, 800)")
    app.until("window.width() == 790", 5)
    app.menu("Plugins", PANEL)
    app.until("len([p for p in panels() if p.complete]) == 2", 20)
    second = "next(p for p in panels() if p.viewer.window._qt_window is window)"
    app.until("window.centralWidget().width() >= window.width() / 2", 5)
    app.click(f"{second}.slide.open")
    app.choose_file(tiny_slide)
    app.until(f"{second}.slides.binding is not None and not {second}.busy", 20)
    time.sleep(1)  # the offer is looked for after that
    assert not app.ask(f"{second}.header.recovery.isVisible()")
    assert app.quit() == 0


def test_after_a_crash_the_strokes_are_offered(desktop, tmp_path, tiny_slide):
    """D3: kill -9 while nothing is saved; then the file is given to the command."""
    app = started(desktop, tmp_path)
    open_by_dialog(app, tiny_slide)
    for y in (300, 500, 700):
        app.stroke((y, 200), (y, 400))
    assert app.ask(STROKES) == 3
    app.kill()
    app = started(desktop, tmp_path, "--plugin", "napari-sparseseg", str(tiny_slide))
    app.until("panel.slides.binding is not None and panel.header.recovery.isVisible()")
    app.click("panel.header.recovery.restore")
    app.until(f"{STROKES} == 3", 10)
    app.kill()


@pytest.mark.slow
def test_an_empty_session_in_between_hides_no_strokes(desktop, tmp_path, tiny_slide):
    """D3: killed again after "Not now", before anything was drawn."""
    for round_ in range(3):
        app = started(desktop, tmp_path)
        open_by_dialog(app, tiny_slide)
        if round_ == 0:
            app.stroke((300, 200), (300, 400))
        else:
            app.until("panel.header.recovery.isVisible()", 10)
            app.click("panel.header.recovery.later" if round_ == 1 else "panel.header.recovery.restore")
        if round_ == 2:
            app.until(f"{STROKES} == 1", 10)
        app.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scale"), [((1024, 768), "1"), ((1600, 1000), "2")], ids=["1024", "200 %"])
def test_on_a_small_screen_the_slide_has_half_of_the_width(tmp_path, tiny_slide, size, scale):
    desktop = Desktop(size)
    try:
        app = Napari(desktop, tmp_path, environment={"QT_SCALE_FACTOR": scale})
        app.ask("window.showMaximized()")
        app.menu("Plugins", PANEL)
        app.until("panel is not None")
        open_by_dialog(app, tiny_slide)
        _, _, width, _ = app.ask("place(window._qt_viewer.canvas.native)")
        assert width >= size[0] / 2
        left, top, wide, high = app.ask("place(panel.train.train)")
        assert left >= 0
        assert left + wide <= size[0]
        assert top + high <= size[1], "Train is in sight"
        app.kill()
    finally:
        desktop.close()
