"""Import of annotations: read, ask what becomes of labels that contradict the file, draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from napari_sparseseg.gui import dialogs
from napari_sparseseg.gui.say import say
from napari_sparseseg.session.importing import MOST_CONFLICTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_sparseseg.annotations.merging import Conflict
    from napari_sparseseg.gui.context import Context
    from napari_sparseseg.gui.sections.slide.view import SlidePanel
    from napari_sparseseg.session.importing import PendingImport
    from napari_sparseseg.session.session import Session

    Load = Callable[[Callable[[], object], str, Callable[[object], object]], None]

CHOICES: dict[str, Conflict] = {"Draw over mine": "over", "Keep mine": "under", "Replace all mine": "replace"}


class ImportActions(QObject):
    """What *Import…* does.

    Parameters
    ----------
    context, panel
        Session, and where the button is.
    load
        Runs a call in the background with a name, and shows the slides afterwards.
    """

    def __init__(self, context: Context, panel: SlidePanel, load: Load) -> None:
        super().__init__(context)
        self._context, self._panel, self._run = context, panel, load
        panel.import_requested.connect(self._on_import)

    def _on_import(self) -> None:
        path = dialogs.ask_open(self._panel, "Import annotations", dialogs.ANNOTATIONS)
        if path:
            session, name = self._context.session, Path(path).name
            self._context.in_background(
                lambda: session.imports.read(path), lambda pending: self._ask(session, pending), name=f"Reading {name}"
            )

    def _ask(self, session: Session, pending: PendingImport) -> None:
        conflict: Conflict = "over"
        if pending.conflicts:
            chosen = dialogs.ask_choice(self._panel, "Import over annotations?", _about(pending), *CHOICES)
            if not chosen:
                return
            conflict = CHOICES[chosen]
        self._run(
            lambda: session.imports.draw(pending, conflict),
            f"Importing {pending.name}",
            lambda added: self._on_imported(pending.name, added),
        )

    def _on_imported(self, name: str, added: object) -> None:
        if added:
            say(f"Added {added} strokes and regions of {name}. Ctrl+Z removes them.")
        else:
            self._context.problem.emit(f"No object of {name} lies on this slide. Nothing was changed.", "")


def _about(pending: PendingImport) -> str:
    n, more = pending.conflicts, " or more" if pending.conflicts == MOST_CONFLICTS else ""
    return (
        f"{n}{more} of the {pending.objects} objects in {pending.name} lie{'s' * (n == 1)} where something of another "
        "class is labelled.\n\nDraw over mine: the file wins.\nKeep mine: the file fills only what is unlabelled.\n"
        "Replace all mine: everything drawn on this slide goes.\n\nCtrl+Z takes either back."
    )
