"""Classes: edit the session's table with undo, and keep table, scribble layer and prediction in step."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.widgets import plain_tip
from napari_sparseseg.session.qupath import read_classes

if TYPE_CHECKING:
    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.classes.view import ClassesPanel
    from napari_sparseseg.gui.sections.slide.controller import SlideActions
    from napari_sparseseg.gui.sections.train.controller import LabelStatistics

Table = tuple["ClassDef", ...]


class ClassActions(QObject):
    """Joins the Classes section, the session's class table and the scribble layer.

    Attributes
    ----------
    shown
        Signal (): classes or their visibility changed.
    """

    shown = Signal()

    def __init__(self, context: Context, panel: ClassesPanel, slides: SlideActions) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides = context, panel, slides
        self._known: Table = ()
        self._layer: Any = None
        self._statistics: LabelStatistics | None = None
        panel.classes_changed.connect(self._on_wish)
        panel.undo_requested.connect(self._on_undo)
        panel.import_requested.connect(self._on_import)
        panel.class_selected.connect(self._on_selected)
        panel.visibility_changed.connect(self._on_visibility)
        panel.protect_changed.connect(self._on_protect)
        panel.table.locks_changed.connect(self._on_locks)
        context.annotated.connect(self.sync)
        context.annotated.connect(self._show_undo)
        slides.binding_changed.connect(self._show_undo)
        context.slides_changed.connect(self.sync)
        context.session_replaced.connect(self._on_session)
        slides.binding_changed.connect(self._on_binding)
        self.sync()

    @property
    def hidden(self) -> frozenset[int]:
        """Ids of the classes that are not to be shown."""
        return self._panel.table.hidden

    def sync(self) -> None:
        """Show the session's table where it is another one now."""
        classes = self._context.session.classes
        if classes == self._known:
            return
        self._known = classes
        self._panel.show_classes(classes, can_undo=bool(self._context.session.history.next_undo))
        if self._statistics is not None:
            self._panel.table.show_statistics(self._statistics)
        self._draw_existing()
        self._select_drawn()
        self.shown.emit()

    def show_statistics(self, statistics: LabelStatistics) -> None:
        """Fill strokes and shares into the table."""
        self._statistics = statistics
        self._panel.table.show_statistics(statistics)

    def _set(self, classes: Table) -> bool:
        def assign() -> None:
            self._context.session.classes = classes

        done = self._context.attempt(assign)
        self._known = ()
        self.sync()
        return done

    def _on_wish(self, classes: Table, what: str) -> None:
        before = self._context.session.classes
        if what.startswith("preset") and not self._agrees(before, classes):
            return
        self._set(tuple(classes))
        self._show_undo()

    def _agrees(self, before: Table, classes: Table) -> bool:
        """Ask before a preset renames or removes classes that have annotations; they are matched by number."""
        counts: Counter[int] = Counter()
        for entry in self._context.session.entries:
            counts.update(s.class_id for s in (*entry.annotations.strokes, *entry.annotations.dense_regions))
        names = {c.id: c.name for c in classes}
        changes = [
            f"{c.name}: {counts[c.id]} become {names[c.id]}"
            if c.id in names
            else f"{c.name}: {counts[c.id]} are removed"
            for c in before
            if counts[c.id] and names.get(c.id) != c.name
        ]
        question = "\n".join(
            ["Strokes and regions keep the number of their class:", *changes, "", "Undo restores them."]
        )
        return not changes or dialogs.ask_yes(self._panel, "Replace the class table?", question, "Replace")

    def _on_import(self) -> None:
        path = dialogs.ask_open(self._panel, "Classes of QuPath", dialogs.QUPATH_CLASSES)
        if path:
            before = self._context.session.classes
            # objects by the thousand take a while to read
            self._context.in_background(
                lambda: read_classes(path, before),
                lambda classes: self._on_wish(classes, "classes of QuPath"),
                name="Reading classes",
            )

    def _on_undo(self) -> None:
        """Take back the last step of all, as Ctrl+Z does."""
        self._context.attempt(self._context.session.history.undo)
        self._known = ()
        self.sync()
        self._show_undo()

    def _show_undo(self) -> None:
        step = self._context.session.history.next_undo
        self._panel.undo.setEnabled(bool(step))
        self._panel.undo.setToolTip(plain_tip(f"Undo (Ctrl+Z): {step}" if step else "Nothing to undo (Ctrl+Z)"))

    def _on_session(self) -> None:
        self._known, self._statistics = (), None
        self.sync()
        self._show_undo()

    def _on_selected(self, class_id: int) -> None:
        if self._layer is not None:
            self._layer.selected_label = class_id
            if str(self._layer.mode) in ("pan_zoom", "erase", "transform"):
                self._layer.mode = "paint"
            self._context.viewer.layers.selection.active = self._layer

    def _on_protect(self, on: bool) -> None:
        if self._layer is not None:
            self._layer.preserve_labels = on

    def _on_locks(self) -> None:
        if self._layer is not None:
            self._layer.locked_classes = self._panel.table.locked

    def _on_visibility(self) -> None:
        self._colour()
        self.shown.emit()

    def _colour(self) -> None:
        binding = self._slides.binding
        if binding is not None:
            binding.show_classes(self._context.session.classes, self.hidden)

    def _on_binding(self) -> None:
        if self._layer is not None:
            self._layer.events.selected_label.disconnect(self._select_drawn)
        binding = self._slides.binding
        self._layer = None if binding is None else binding.scribbles.layer
        self.sync()
        if self._layer is None:
            return
        self._layer.preserve_labels = self._panel.protect.isChecked()
        self._on_locks()
        self._draw_existing()
        if str(self._layer.mode) == "pan_zoom":
            self._layer.mode = "paint"
        self._layer.events.selected_label.connect(self._select_drawn)
        self._select_drawn()
        self._colour()

    def _draw_existing(self) -> None:
        """Draw with the class nearest to one that was removed."""
        known = [c.id for c in self._context.session.classes]
        if self._layer is not None and known and self._layer.selected_label not in known:
            removed = int(self._layer.selected_label)
            self._layer.selected_label = min(known, key=lambda number: abs(number - removed))

    def _select_drawn(self, event: Any = None) -> None:
        if self._layer is not None:
            self._panel.table.select_class(int(self._layer.selected_label))
