"""A Hugging Face hub on this machine, with one repository; it speaks as much of the protocol as is asked of it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = {"license": "other", "license_name": "tissue-licence", "license_link": "LICENSE.md"}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted.\x1b[31m"}


class Hub(ThreadingHTTPServer):
    """Serves one repository; remembers what was asked for.

    Parameters
    ----------
    name
        Of the repository, ``OWNER/NAME``.
    files
        Content by path.
    stated
        SHA-256 by path.
    card
        What the head of its README says.
    answers
        Status and headers by path, or for ``""`` where the repository itself is asked about.
    """

    daemon_threads = True

    def __init__(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        stated: dict[str, str] | None = None,
        card: dict[str, Any] | None = None,
        answers: dict[str, tuple[int, dict[str, str]]] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.name, self.files, self.stated, self.card = name, files, stated or {}, card or {}
        self.answers = answers or {}
        self.asked: list[tuple[str, str]] = []
        self.sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.asked.append((self.command, path))
        name, content = path.removeprefix(f"/{hub.name}/resolve/").partition("/")[2], None
        if path.startswith(f"/api/models/{hub.name}"):
            about = {"id": hub.name, "sha": COMMIT, "tags": [], "cardData": hub.card}
            about["siblings"] = [{"rfilename": file} for file in hub.files]
            name, content = "", json.dumps(about).encode()
        elif path.startswith(f"/{hub.name}/resolve/"):
            content = hub.files.get(name)
        status, headers = hub.answers.get(name, (404 if content is None else 200, {}))
        content = (content or b"") if status == 200 else b""
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        if headers.get("Connection") != "close":  # else it goes on until the connection ends
            self.send_header("Content-Length", str(len(content)))
        if name in hub.stated:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hub.stated[name]}"')
            self.send_header("X-Linked-Etag", f'"{hub.stated[name]}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if body:
            self._send(content)

    def _send(self, content: bytes) -> None:
        try:
            for at in range(0, len(content), 4096):
                self.wfile.write(content[at : at + 4096])
                self.server.sent += len(content[at : at + 4096])
        except OSError:
            """Nobody listens any more."""

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answers until the end of the block, for processes with `surroundings`."""
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def surroundings(hub: Hub, folder: Path) -> dict[str, str]:
    """Environment of a process that knows no other hub."""
    home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    return {**home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1"}


@contextmanager
def at_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """This process knows no other hub: huggingface_hub has read its environment already."""
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.close_session()
    with serving(hub), monkeypatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        try:
            yield hub
        finally:
            huggingface_hub.close_session()
