"""Slides: open, adopt from napari, switch, import, recover; one `SlideBinding` per open slide; recent files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.QtCore import QObject, QTimer, Signal

from napari_sparseseg.files import state_folder, write_atomic
from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.host import canvas_beside, prefer_reader_for_slides, taking_out
from napari_sparseseg.gui.layers.lazy_labels import LazyLabels
from napari_sparseseg.gui.layers.napari_compat import problems
from napari_sparseseg.gui.layers.slide_layers import SlideBinding, slide_name
from napari_sparseseg.gui.reader import layers_of_one_image, open_in, show_in_pixels, slide_of_layers
from napari_sparseseg.gui.say import say
from napari_sparseseg.gui.sections.slide.importing import ImportActions
from napari_sparseseg.gui.sections.slide.view import slide_facts
from napari_sparseseg.samples import sample_scribbles, sample_slide, skin_scribbles, skin_slide
from napari_sparseseg.session.recovery import recoverable, recovered, recovery_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from napari.layers import Layer

    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.layers.scribbles import Steps
    from napari_sparseseg.gui.sections.header.view import Header
    from napari_sparseseg.gui.sections.slide.view import SlidePanel
    from napari_sparseseg.session.slides import SlideEntry
    from napari_sparseseg.slides import Slide


def is_ours(layer: Layer) -> bool:
    slide: Slide | None = layer.metadata.get("slide")
    return slide is not None and not slide.closed


def same_image(a: Slide, b: Slide) -> bool:
    """Whether two slides are one image of one file."""
    return a.image == b.image and os.path.exists(a.path) and os.path.realpath(a.path) == os.path.realpath(b.path)


class SlideActions(QObject):
    """Connects the Slide section, the viewer's layers and the session.

    Attributes
    ----------
    binding_changed
        Signal (): `binding`, the layers of the active slide, changed, or its scribble layer was recreated.
    """

    binding_changed = Signal()

    def __init__(self, context: Context, panel: SlidePanel, header: Header) -> None:
        super().__init__(context)
        self._context, self._panel, self._header = context, panel, header
        self._bindings: dict[str, SlideBinding] = {}
        self._adopting: dict[str, list[Layer]] = {}
        self._free: list[Image] = []
        self._offered: set[str] = set()
        self._unsaved: dict[str, Path] = {}
        self._loading = 0
        self.binding: SlideBinding | None = None
        self._arriving: SlideBinding | None = None
        self._steps: Iterator[None] | None = None
        prefer_reader_for_slides()
        panel.open_requested.connect(self._on_open)
        header.error.find.clicked.connect(lambda _=False: self._on_open())
        panel.sample_requested.connect(self.open_sample)
        panel.skin_requested.connect(self.open_skin)
        ImportActions(context, panel, self._load)
        panel.close_requested.connect(self._on_close)
        panel.layer_chosen.connect(self._on_use_layer)
        panel.slide_chosen.connect(self._on_slide_chosen)
        panel.image_chosen.connect(self._on_image)
        panel.role_chosen.connect(self._on_role)
        panel.mpp_entered.connect(self._on_mpp)
        header.recovery.restore_requested.connect(self._on_restore)
        header.recovery.later.clicked.connect(self._on_not_now)
        context.slides_changed.connect(self.sync)
        context.annotated.connect(self._on_annotated)
        context.session_replaced.connect(self.release)
        header.add_action("Open OME-Zarr…", "Open a slide that is a folder", self.open_folder)
        layers = context.viewer.layers.events
        layers.inserted.connect(self._on_layer_inserted)
        layers.removed.connect(self._on_layer_removed)

    def open(self, path: str | Path) -> None:
        """Open a slide in the background and show it."""
        session = self._context.session
        self._load(lambda: open_in(session, path), f"Opening {Path(path).name}")

    def open_sample(self) -> None:
        """Open the synthetic sample with its scribbles."""
        self._open_drawn(sample_slide(), sample_scribbles())

    def open_skin(self) -> None:
        """Open the real sample with its scribbles."""
        self._open_drawn(skin_slide(), skin_scribbles())

    def _open_drawn(self, slide: Path, scribbles: Path) -> None:
        session = self._context.session
        self.adopt_ours()  # the slide may be a layer already

        def load() -> None:
            open_in(session, slide)
            if not any(session.annotations.counts().values()):
                session.import_annotations(scribbles)

        self._load(load, f"Opening {slide.name}")

    def open_folder(self) -> None:
        """Ask for an OME-Zarr, which is a folder, and open it."""
        path = dialogs.ask_folder(self._panel, "Open OME-Zarr (a folder NAME.zarr)")
        if path:
            self.open(path)

    def adopt(self, layer: Image) -> None:
        """Annotate an image that napari shows already."""
        together = layers_of_one_image(layer, self._context.viewer.layers)

        def take() -> Slide | None:
            made, session = slide_of_layers(together), self._context.session
            known = next((e for e in session.entries if e.slide is made or same_image(e.slide, made)), None)
            if known is None:
                self._adopting[made.fingerprint] = list(together)
                session.add(made)
            elif known.slide is not made:  # strokes on one slide in two places would replace each other on disk
                session.activate(known.slide)
                return made
            return None

        if is_ours(layer):
            if self._context.attempt(lambda: self._drop(take(), together)):
                self.sync()
        elif not self._loading:  # a second click
            self._load(take, f"Reading {layer.name}", lambda twin: self._drop(twin, ()))

    def _drop(self, twin: Slide | None, layers: Iterable[Layer]) -> None:
        """Take out the layers of a slide that was open already, and close it."""
        if twin is not None:
            for layer in layers:
                self._context.viewer.layers.remove(layer)
            twin.close()
            say(f"{slide_name(twin)} is open already.")

    def adopt_ours(self) -> None:
        """Adopt every slide that our reader has opened in this viewer."""
        if self._context.closed:
            return
        for layer in list(self._context.viewer.layers):
            if isinstance(layer, Image) and is_ours(layer) and not self._is_bound(layer):
                self.adopt(layer)
        self._list_layers()

    def sync(self) -> None:
        """Create layers for open slides, remove those of closed ones, and show the active slide."""
        if self._context.closed or self._loading or self._steps is not None or problems():
            return  # a job or the steps may be half done; they call this again when they end
        entries = {e.key: e for e in self._context.session.entries}
        gone = next((key for key in self._bindings if key not in entries), None)
        new = next((key for key in entries if key not in self._bindings), None)
        if gone is not None:
            with taking_out(self._context.viewer.layers):
                self._begin(self._take_out(gone))
            self.sync()
        elif new is not None:
            self._begin(self._put_in(entries[new]))
            self.sync()
        else:
            self._activate()
            self._list_layers()

    def _begin(self, steps: Iterator[None]) -> None:
        """Go through the steps at once.

        The canvas is not drawn in between: with some of a slide's layers, Mesa's software renderer may crash (D73).
        """
        self._steps = steps
        self._draw_canvas(False)
        try:
            for _ in steps:
                pass
        finally:
            self._steps = None
            self._draw_canvas(True)

    def _draw_canvas(self, on: bool) -> None:
        canvas = canvas_beside(self._panel)
        if canvas is not None:
            canvas.setUpdatesEnabled(on)

    def _take_out(self, key: str) -> Iterator[None]:
        """Close a slide's layers."""
        closed = self._bindings.pop(key)
        self._offered.discard(closed.entry.slide.fingerprint)
        self._unsaved.pop(key, None)
        if closed is self.binding:
            self.binding = None
            self.binding_changed.emit()
            yield
        yield from closed.closing()
        yield

    def _put_in(self, entry: SlideEntry) -> Iterator[None]:
        """Show a slide's layers."""
        images = self._adopting.pop(entry.slide.fingerprint, None)
        show_in_pixels(images or ())
        self._arriving = arriving = SlideBinding(self._context.viewer, entry, images, self._context.session.history)
        yield
        yield from arriving.add_annotations()
        self._arriving, self._bindings[entry.key] = None, arriving
        self._offer_recovery(entry)
        yield

    def release(self) -> None:
        """Remove all layers of the session from the viewer, unless the window is closing."""
        self.binding = None
        self.binding_changed.emit()
        with taking_out(self._context.viewer.layers):
            while self._bindings:
                self._bindings.popitem()[1].close(take_out=not self._context.leaving)

    def close(self) -> None:
        """Disconnect from the viewer."""
        layers = self._context.viewer.layers.events
        layers.inserted.disconnect(self._on_layer_inserted)
        layers.removed.disconnect(self._on_layer_removed)
        self.release()

    def undo(self) -> None:
        """Take back the last step on the active slide, or of another layer of labels while that is active."""
        self._context.attempt(self._walked.undo)

    def redo(self) -> None:
        """Make the step again that was taken back last; as `undo`."""
        self._context.attempt(self._walked.redo)

    @property
    def _walked(self) -> Steps:
        active = self._context.viewer.layers.selection.active
        ours = any(active == layer for b in self._bindings.values() for layer in b.layers)
        if isinstance(active, Labels) and not ours and not isinstance(active, LazyLabels):
            foreign: Steps = active
            return foreign
        return self._context.session.history if self.binding is None else self.binding.scribbles.layer

    def _load(self, work: Callable[[], Any], name: str, then: Callable[[Any], object] | None = None) -> None:
        """Change slides or annotations in a job; when it ends, synchronise the layers and call `then(result)`."""
        self._loading += 1
        self._context.jobs.run(work, then, name=name, always=self._on_loaded)

    def _on_loaded(self) -> None:
        self._loading -= 1
        self.sync()

    def _activate(self) -> None:
        entry = self._context.entry
        binding = None if entry is None else self._bindings.get(entry.key)
        renewed = binding.follow_annotations() if binding is not None else False
        if binding is not self.binding:
            for other in self._bindings.values():
                if other is not binding:
                    other.set_visible(False)
            if binding is not None:
                binding.set_visible(True)
        changed = renewed or binding is not self.binding
        self.binding = binding
        self._show_offer()
        self._show()
        if changed:
            self.binding_changed.emit()

    def _show(self) -> None:
        entries = self._context.session.entries
        entry = self._context.entry
        self._panel.show_slides([slide_name(e.slide) for e in entries], -1 if entry is None else entries.index(entry))
        if entry is not None:
            self._panel.show_slide(entry.slide, entry.role, slide_facts(entry.slide))

    def _on_annotated(self) -> None:
        entry, binding = self._context.entry, self.binding
        if entry is None or binding is None:
            return
        if binding.scribbles.annotations is not entry.annotations:
            self.sync()
        else:
            binding.show_others()

    # Actions of the user

    def _on_open(self) -> None:
        for path in dialogs.ask_open_several(self._panel, "Open slides", dialogs.SLIDES):
            self.open(path)

    def _on_close(self) -> None:
        entry = self._context.entry
        if entry is not None:
            session = self._context.session
            self._load(lambda: session.remove(entry.slide), f"Closing {slide_name(entry.slide)}")

    def _on_use_layer(self, index: int) -> None:
        if 0 <= index < len(self._free):
            self.adopt(self._free[index])

    def _on_slide_chosen(self, index: int) -> None:
        session = self._context.session
        session.activate(session.entries[index].slide)
        self.sync()

    def _on_image(self, number: int) -> None:
        entry, session = self._context.entry, self._context.session
        if entry is not None and number != entry.slide.image:
            path = entry.slide.path
            self._load(lambda: session.open(path, image=number), f"Opening image {number} of {Path(path).name}")

    def _on_role(self, role: Any) -> None:
        entry = self._context.entry
        if entry is not None:
            self._context.session.set_role(role, entry.slide)
            self._context.annotated.emit()

    def _on_mpp(self, mpp: float) -> None:
        entry = self._context.entry
        if entry is not None:
            self._context.session.set_mpp(mpp or None, entry.slide)
            self._show()

    # Layers

    def _is_bound(self, layer: Layer) -> bool:
        return any(layer in b.images for b in (*self._bindings.values(), *filter(None, [self._arriving])))

    def _on_layer_inserted(self, event: Any) -> None:
        layer = event.value
        if not isinstance(layer, Image) or self._is_bound(layer):
            return
        if is_ours(layer):
            QTimer.singleShot(0, self.adopt_ours)  # its other channels are inserted right after this one
        self._list_layers()

    def _on_layer_removed(self, event: Any) -> None:
        layer = event.value
        owner = next((b for b in self._bindings.values() if layer in b.images), None)
        if owner is not None:
            owner.images.remove(layer)
            # deferred: a closing viewer removes its layers first, and its slides stay in the session
            QTimer.singleShot(0, self._remove_imageless)
        elif any(b.scribbles.closed for b in self._bindings.values()):
            QTimer.singleShot(0, self._restore_scribbles)
        self._list_layers()

    def _restore_scribbles(self) -> None:
        """Bring scribble layers back that the user has removed; without them nothing could be drawn."""
        binding = self.binding
        if not self._context.closed and binding is not None and binding.images and binding.scribbles.closed:
            self.sync()
            say("The annotations of an open slide cannot be removed as a layer. Hide the layer, or close the slide.")

    def _remove_imageless(self) -> None:
        session = self._context.session
        for binding in list(self._bindings.values()):
            if not binding.images and binding.entry in session.entries and not self._context.closed:
                session.remove(binding.entry.slide)

    def _list_layers(self) -> None:
        layers = self._context.viewer.layers
        self._free = [la for la in layers if isinstance(la, Image) and la.ndim == 2 and not self._is_bound(la)]
        self._panel.show_layers([la.name for la in self._free])

    # Recovery of sessions that were not saved

    def _offer_recovery(self, entry: SlideEntry) -> None:
        fingerprint = entry.slide.fingerprint
        if fingerprint in self._offered or any(entry.annotations.counts().values()):
            return
        self._offered.add(fingerprint)
        self._context.jobs.run(
            lambda: recoverable(fingerprint, running=False), lambda found: self._on_found(entry, found)
        )

    def _on_found(self, entry: SlideEntry, found: list[Path]) -> None:
        if found:
            self._unsaved[entry.key] = found[0]
            self._show_offer()

    def _show_offer(self) -> None:
        """Offer what was found for the active slide; those of other slides are offered when they become active."""
        entry = self._context.entry
        folder = None if entry is None else self._unsaved.get(entry.key)
        if entry is None or folder is None:
            self._header.recovery.hide()
        else:
            self._header.recovery.offer_scribbles(slide_name(entry.slide), entry, folder)

    def _on_not_now(self) -> None:
        self._unsaved.pop(self._header.recovery.offered[0].key, None)

    def _on_restore(self) -> None:
        entry, folder = self._header.recovery.offered
        session = self._context.session
        self._unsaved.pop(entry.key, None)

        def restore() -> None:
            file = recovered(folder, entry.slide.fingerprint)
            session.activate(entry.slide)
            session.import_annotations(file)  # over what was drawn since it was offered

        self._load(restore, "Restoring annotations")


MOST_RECENT = 10


def recent_slides() -> list[Path]:
    """Paths that exist, newest first."""
    try:
        listed = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    paths = [Path(p) for p in listed if isinstance(p, str)] if isinstance(listed, list) else []
    return [p for p in paths if p.exists()]


def remember(paths: list[Path]) -> list[Path]:
    """Put paths at the top of the list, and return it; a list that cannot be written is left as it is."""
    recent = [*paths, *(p for p in recent_slides() if p not in paths)][:MOST_RECENT]
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(), lambda path: _write(path, recent))
    except OSError:
        return recent_slides()
    return recent


def _write(path: Path, recent: list[Path]) -> None:
    path.write_text(json.dumps([str(p) for p in recent]), encoding="utf-8")


def _file() -> Path:
    return state_folder() / "recent.json"


class RecentActions(QObject):
    """Maintains the list of recent files and its menu."""

    def __init__(
        self, context: Context, panel: SlidePanel, slides: SlideActions, open_project: Callable[[str], object]
    ) -> None:
        super().__init__(context)
        self._context, self._panel, self._slides, self._open_project = context, panel, slides, open_project
        self._seen: set[Path] = set()
        context.slides_changed.connect(self._on_slides)
        panel.recent_chosen.connect(self._on_chosen)
        context.jobs.run(recent_slides, self._list)

    def _on_chosen(self, path: str) -> None:
        (self._open_project if (Path(path) / "project.json").exists() else self._slides.open)(path)

    def _on_slides(self) -> None:
        session = self._context.session
        paths = [Path(e.slide.path) for e in session.entries]
        new = [p.absolute() for p in paths if p.exists() and p not in (sample_slide(), skin_slide())]
        if session.project is not None and session.project.parent != recovery_folder().resolve():
            new.insert(0, session.project.absolute())
        new = [p for p in new if p not in self._seen]
        if new:
            self._seen |= set(new)
            self._context.jobs.run(lambda: remember(new), self._list)

    def _list(self, recent: list[Path]) -> None:
        self._panel.show_recent([str(p) for p in recent])
