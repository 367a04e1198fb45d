"""Background calls of the panel."""

from __future__ import annotations

import threading

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QApplication

from napari_sparseseg.gui.context import Job


def test_a_call_that_outlives_its_panel_ends_without_a_traceback(qapp, monkeypatch):
    raised, release, parent = [], threading.Event(), QObject()
    monkeypatch.setattr(threading, "excepthook", raised.append)
    job = Job(release.wait, parent)
    job.start()
    parent.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
    release.set()
    assert job.wait(10)
    assert not raised
