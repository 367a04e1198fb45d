"""Classes section: the table, its buttons, and class tables to start from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QCheckBox, QComboBox, QMenu, QPushButton, QSlider, QWidget

from napari_sparseseg.config import GREY, MAX_CLASS_ID, PALETTE, ClassDef, make_classes
from napari_sparseseg.gui.dialogs import ask_colour
from napari_sparseseg.gui.sections.classes.table import ClassTableView
from napari_sparseseg.gui.widgets import button, column, hold, menu_button, note, plain_tip, row

if TYPE_CHECKING:
    from collections.abc import Sequence


class ClassesPanel(QWidget):
    """The body of the section.

    Attributes
    ----------
    classes_changed
        Signal (tuple of ClassDef, description): the table that the user asks for.
    undo_requested, import_requested, list_requested, preset_save_requested
        Signals ().
    preset_load_requested
        Signal (bool): a file with classes, and with training settings or without.
    class_selected
        Signal (class id): draw with this class.
    visibility_changed
        Signal ().
    protect_changed
        Signal (bool): strokes must not cover labelled pixels.
    tool_changed
        Signal (str): what the brush takes, one of `TOOLS`.
    amount_changed
        Signal (float): 0 to 1, how much it takes.
    """

    classes_changed = Signal(object, str)
    undo_requested = Signal()
    import_requested = Signal()
    list_requested = Signal()
    preset_load_requested = Signal(bool)
    preset_save_requested = Signal()
    class_selected = Signal(int)
    visibility_changed = Signal()
    protect_changed = Signal(bool)
    tool_changed = Signal(str)
    amount_changed = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self._classes: tuple[ClassDef, ...] = ()
        self._seen: set[int] = set()
        self.table = ClassTableView()
        self.table.setAccessibleName("Classes")
        self.table.class_selected.connect(self.class_selected.emit)
        self.table.visibility_changed.connect(self.visibility_changed.emit)
        self.table.renamed.connect(self._on_renamed)
        self.table.colour_requested.connect(self._on_colour)
        self.add = button(
            "Add",
            "Add a class; its colour can be distinguished by colour-blind people",
            self._on_add,
        )
        self.remove = button(
            "Remove", "Remove the selected class and all of its annotations; Undo restores them", self._on_remove
        )
        self.up = button(
            "↑",
            "Move the selected class up (Alt+Up in the table); its key stays the same",
            lambda: self._move(-1),
        )
        self.down = button(
            "↓",
            "Move the selected class down (Alt+Down in the table); its key stays the same",
            lambda: self._move(1),
        )
        self.undo = button(
            "Undo",
            "Undo the last change of this table",
            self.undo_requested.emit,
        )
        for narrow in (self.up, self.down):
            narrow.setFixedWidth(26)
        self.presets = self._make_presets()
        self.protect = QCheckBox("Do not draw over labels")
        self.protect.setToolTip("New strokes only fill unlabelled pixels (in napari: preserve labels)")
        self.protect.toggled.connect(self.protect_changed.emit)
        self.tool, self.amount = _tool_box(), _amount()
        self._prepare_lower_row()
        self.hint = note(
            "Draw on the slide: keys 1–9 choose the class, [\u00a0and\u00a0] the brush size, Ctrl+Z undoes a stroke."
        )
        layout = column(self)
        layout.addWidget(self.table)
        layout.addLayout(row(self.add, self.remove, self.up, self.down, self.undo, stretch=0))
        layout.addLayout(row(self.protect, self.presets, stretch=0))
        layout.addLayout(row(self.tool, self.amount, self.list, stretch=1))
        layout.addWidget(self.hint)
        self.table.move_requested.connect(self._move)
        self.table.remove_requested.connect(self._on_remove)

    def _make_presets(self) -> QPushButton:
        made = menu_button(
            "Presets", "Replace this table by one for a common task",
            [
                *((name, partial(self._wish, classes, f"preset {name}")) for name, classes in PRESETS.items()),
                ("Add the classes of QuPath…", self.import_requested.emit),
                ("Add the classes of a model…", partial(self.preset_load_requested.emit, False)),
                ("Load preset…", partial(self.preset_load_requested.emit, True)),
                ("Save preset…", self.preset_save_requested.emit),
            ],
        )  # fmt: skip
        menu: QMenu = made.menu()
        for before in menu.actions()[-4::2]:
            menu.insertSeparator(before)
        return made

    def _prepare_lower_row(self) -> None:
        self.list = button(
            "List…", "All annotations of the slide, and which of them contradict the model", self.list_requested.emit
        )
        self.tool.activated.connect(lambda i: self.tool_changed.emit(self.tool.itemData(i)))
        self.amount.valueChanged.connect(lambda value: self.amount_changed.emit(value / AMOUNTS))

    def show_tool(self, tool: str, amount: float) -> None:
        """Show the tool in use, and how much it takes (0 to 1)."""
        self.tool.setCurrentIndex(self.tool.findData(tool))
        self.amount.setEnabled(tool in AMOUNT_TIPS)
        self.amount.setToolTip(plain_tip(AMOUNT_TIPS.get(tool, NO_AMOUNT)))
        self.amount.blockSignals(True)
        self.amount.setValue(round(amount * AMOUNTS))
        self.amount.blockSignals(False)

    def show_classes(self, classes: Sequence[ClassDef], *, can_undo: bool) -> None:
        """Show the session's table."""
        self._classes = tuple(classes)
        self._seen |= {c.id for c in self._classes}
        self.table.show_classes(self._classes, self.table.hidden)
        self.undo.setEnabled(can_undo)
        self.remove.setEnabled(bool(self._classes))

    def _wish(self, classes: Sequence[ClassDef], what: str) -> None:
        self.classes_changed.emit(tuple(classes), what)

    def _on_add(self) -> None:
        used = {c.id for c in self._classes}
        free = [i for i in range(1, MAX_CLASS_ID + 1) if i not in used]
        if not free:
            return
        # ids of removed classes are used last: undo may restore their strokes
        free_id = next((i for i in free if i not in self._seen), free[0])
        made = ClassDef(free_id, next_name(self._classes), next_colour(self._classes))
        hold(self.add)
        self._wish((*self._classes, made), f"add {made.name}")
        self.table.edit_name(free_id)

    def _on_remove(self) -> None:
        chosen = self.table.selected
        if chosen is not None:
            name = next(c.name for c in self._classes if c.id == chosen)
            self._wish([c for c in self._classes if c.id != chosen], f"remove {name}")

    def _on_renamed(self, class_id: int, name: str) -> None:
        self._wish([replace(c, name=name) if c.id == class_id else c for c in self._classes], f"rename to {name}")

    def _on_colour(self, class_id: int) -> None:
        c = next(c for c in self._classes if c.id == class_id)
        colour = ask_colour(self, f"Colour of {c.name}", c.colour)
        if colour:
            self._wish([replace(k, colour=colour) if k.id == class_id else k for k in self._classes], "colour")

    def _move(self, by: int) -> None:
        at = next((i for i, c in enumerate(self._classes) if c.id == self.table.selected), None)
        if at is None or not 0 <= at + by < len(self._classes):
            return
        order = list(self._classes)
        order[at], order[at + by] = order[at + by], order[at]
        self._wish(order, "order")


BRUSH, SNAP, SUPERPIXELS, REGIONS = "brush", "snap", "superpixels", "regions"
TOOLS = {
    BRUSH: ("Brush", "Strokes are what you draw"),
    SNAP: ("Snap brush", "Strokes grow to the tissue around them that looks the same (S)"),
    SUPERPIXELS: ("Superpixels", "A click takes a small patch of one colour, a drag all that it crosses (U)"),
    REGIONS: ("Predicted regions", "A click accepts a region as it is predicted, a drag all that it crosses (Shift+G)"),
}
AMOUNT_TIPS = {
    SNAP: "How different the tissue may be: left, only what is very similar (Shift and mouse wheel)",
    SUPERPIXELS: "Size of the superpixels (Shift and mouse wheel)",
}
NO_AMOUNT = "For the snap brush and superpixels: how much a stroke takes"
AMOUNTS = 1000


def _tool_box() -> QComboBox:
    made = QComboBox()
    made.setAccessibleName("What a stroke takes")
    for tool, (name, why) in TOOLS.items():
        made.addItem(name, tool)
        made.setItemData(made.count() - 1, plain_tip(why), Qt.ItemDataRole.ToolTipRole)
    made.setToolTip(
        "What a click or stroke takes: what you draw, tissue that looks the same (S), superpixels (U), or predicted "
        "regions (Shift+G). An outline under the pointer shows it. Shift takes it away; Ctrl+Z undoes it whole."
    )
    return made


def _amount() -> QSlider:
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(0, AMOUNTS)
    slider.setAccessibleName("How much a stroke takes")
    slider.setToolTip(plain_tip(NO_AMOUNT))
    slider.setEnabled(False)
    return slider


_MORE = ("#332288", "#882255", "#44aa99", "#117733", "#ddcc77", "#aa4499")
_VIVID = tuple(c for c in PALETTE if c != GREY)
COLOURS = (*_VIVID[:-1], *_MORE, _VIVID[-1], GREY)
BACKGROUND = "background"


def _table(*names: str) -> tuple[ClassDef, ...]:
    return make_classes((name, GREY if name == BACKGROUND else COLOURS[i]) for i, name in enumerate(names))


PRESETS: dict[str, tuple[ClassDef, ...]] = {
    "Tissue and background": _table("tissue", "background"),
    "Tumour and stroma": _table("tumour", "stroma", "other tissue", "background"),
    "Tumour, stroma, necrosis, lymphocytes": _table("tumour", "stroma", "necrosis", "lymphocytes", "background"),
    "Colorectal tissue": _table(
        "tumour epithelium", "stroma", "normal mucosa", "smooth muscle", "lymphocytes", "mucus", "adipose", "debris",
        "background",
    ),
    "Artefacts": _table("tissue", "fold", "out of focus", "pen", "bubble", "background"),
}  # fmt: skip
"""Colorectal: the nine classes of Kather et al., PLoS Medicine 16(1), 2019 (NCT-CRC-HE-100K)."""


def next_colour(classes: tuple[ClassDef, ...]) -> str:
    """The first unused colour; when all are used, their darker and lighter shades."""
    used = {c.colour.lower() for c in classes}
    shades = [COLOURS, *([QColor(c).darker(percent).name() for c in COLOURS] for percent in (165, 60, 230))]
    return next((c for shade in shades for c in shade if c not in used), COLOURS[len(classes) % len(COLOURS)])


def next_name(classes: tuple[ClassDef, ...]) -> str:
    """The first unused name ``class N``."""
    used = {c.name.casefold() for c in classes}
    return next(f"class {n}" for n in range(len(classes) + 1, 600) if f"class {n}" not in used)
