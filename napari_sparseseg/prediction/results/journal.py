"""What a run has done so far, so that it can be continued after a crash."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Journal:
    """A file of JSON lines that is only appended to: a header, then one line per event.

    The header says what is being predicted: slide fingerprint, model hash, parameters. A journal with another header
    belongs to another prediction. A line that a crash cut short is ignored: that shard is predicted again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: dict[str, Any] | None = None
        self.done: set[int] = set()
        """Numbers of the shards that are stored."""
        self.placing: list[str] = []
        """Final files that the run had begun to publish."""
        self.started = path.exists()
        if self.started:
            self._read()

    def begin(self, header: dict[str, Any]) -> None:
        """Start a new journal in place of any old one."""
        self._path.unlink(missing_ok=True)
        self.header, self.done, self.placing = header, set(), []
        self._append({"header": header})

    def shard_done(self, index: int) -> None:
        """Note that a shard is stored."""
        self.done.add(index)
        self._append({"shard": index})

    def place(self, paths: list[str]) -> None:
        """Note that the final files are about to be published."""
        self.placing = paths
        self._append({"placing": paths})

    def _append(self, entry: dict[str, Any]) -> None:
        # One write call on a file opened for appending: lines never mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(entry) + "\n").encode())
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        content = self._path.read_bytes()
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            self.header = entry.get("header", self.header)
            self.placing = entry.get("placing", self.placing)
            if isinstance(entry.get("shard"), int):
                self.done.add(entry["shard"])
        if content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")
