"""napari as a person starts and uses it: its command, on a desktop of its own, with a real mouse and real keys.

`Desktop` is an Xvfb with a window manager; `Napari` the process and the hands. Widgets are asked where they are (see
``outside_in/sitecustomize.py``); everything that is done to them is an X event.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

MUST_RUN = os.environ.get("REQUIRE_GUI") == "1" or os.environ.get("CI") == "true"
"""Whether tests with a window must run; else they are skipped where they cannot."""
PROGRAMS = ("Xvfb", "openbox", "xdotool")
PROBE = Path(__file__).parent / "outside_in"
HERE = Path(__file__).resolve().parents[2]


def missing_programs() -> str:
    """What this machine lacks, as a reason to skip; empty when nothing does."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (Debian packages xvfb, openbox, xdotool)" if absent else ""


class Desktop:
    """An X server with a window manager.

    Parameters
    ----------
    size
        Width and height of the screen.
    """

    def __init__(self, size: tuple[int, int] = (1400, 1000)) -> None:
        read, write = os.pipe()
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{size[0]}x{size[1]}x24", "-nolisten", "tcp"],
            pass_fds=(write,),
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read) as answer:
            self.display = f":{answer.readline().strip()}"
        self.environment = {**os.environ, "DISPLAY": self.display}
        self.environment.pop("WAYLAND_DISPLAY", None)
        self._manager = subprocess.Popen(
            ["openbox"], env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def close(self) -> None:
        for process in (self._manager, self._server):
            process.terminate()
            process.wait(10)


class Napari:
    """A running napari and the hands on it.

    Parameters
    ----------
    desktop
        Where it is shown.
    home
        Its home folder; a fresh one has no settings.
    arguments
        Of the command ``napari``.
    environment
        Added to the process's.
    """

    def __init__(
        self, desktop: Desktop, home: Path, *arguments: str, environment: dict[str, str] | None = None
    ) -> None:
        self.desktop, self.home = desktop, home
        home.mkdir(parents=True, exist_ok=True)
        self._socket_path = home / "probe"
        self._socket_path.unlink(missing_ok=True)
        inherited = {k: v for k, v in desktop.environment.items() if not k.startswith(("NAPARI_", "XDG_", "QT_"))}
        self.log = home / "terminal.txt"
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("napari")), *arguments],
            env={
                **inherited,
                "HOME": str(home),
                "PYTHONPATH": os.pathsep.join([str(PROBE), str(HERE)]),
                "SPARSESEG_PROBE": str(self._socket_path),
                "LP_NUM_THREADS": "1",
                **(environment or {}),
            },
            cwd=home,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._connect()
        self.until("window is not None and window.isVisible()")

    def _connect(self) -> None:
        end = time.monotonic() + 60
        while not self._socket_path.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "napari did not start within 60 s"
            time.sleep(0.05)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self._socket_path))
        self._lines = self._socket.makefile("rw")

    # Eyes

    def ask(self, expression: str) -> Any:
        """The value of an expression over ``window``, ``viewer``, ``panel`` and the probe's functions."""
        try:
            self._lines.write(json.dumps(expression) + "\n")
            self._lines.flush()
            line = self._lines.readline()
        except OSError as error:
            raise AssertionError(f"napari is gone:\n{self.log.read_text()[-3000:]}") from error
        assert line, f"napari is gone:\n{self.log.read_text()[-3000:]}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def until(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true."""
        assert self.soon(expression, seconds), f"not within {seconds} s: {expression}"

    def soon(self, expression: str, seconds: float = 8.0) -> bool:
        """Whether an expression comes true in time."""
        end = time.monotonic() + seconds
        while not self.ask(f"bool({expression})"):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def picture(self, path: Path) -> None:
        """What the screen shows, as PNG."""
        from PIL import ImageGrab

        ImageGrab.grab(xdisplay=self.desktop.display).save(path)

    # Hands

    def _do(self, *command: object) -> None:
        subprocess.run(
            ["xdotool", *map(str, command)], env=self.desktop.environment, check=True, stdout=subprocess.DEVNULL
        )

    def click(self, where: str | tuple[float, float], *, double: bool = False) -> None:
        """Click the middle of a widget, or a point of the screen.

        A text is a widget, or a place (left, top, width, height), as an expression.
        """
        x, y = self._middle(where) if isinstance(where, str) else where
        self._do("mousemove", round(x), round(y), "sleep", 0.05)
        self._do(*("click", "--repeat", 2, "--delay", 60, 1) if double else ("click", 1))
        time.sleep(0.1)

    def hover(self, y: float, x: float) -> None:
        """Move the mouse over level-0 pixel (y, x), without a button."""
        right, down = self.at(y, x)
        self._do("mousemove", round(right) - 3, round(down), "sleep", 0.03, "mousemove", round(right), round(down))
        time.sleep(0.1)

    def _middle(self, expression: str) -> tuple[float, float]:
        """The middle of a widget once it rests: a window manager resizes a window a moment after it was asked to."""
        end, before = time.monotonic() + 10, None
        while True:
            place = self.ask(f"(lambda w: w if isinstance(w, list) else place(w))({expression})")
            if place == before or time.monotonic() > end:
                left, top, width, height = place
                return left + width / 2, top + height / 2
            before = place
            time.sleep(0.1)

    def key(self, *keys: str) -> None:
        """Press keys, in X's names ("ctrl+z", "Return", "bracketleft")."""
        for key in keys:
            self._do("key", key)
            time.sleep(0.05)

    def write(self, text: str) -> None:
        """Type a text."""
        self._do("type", "--delay", 8, text)
        time.sleep(0.1)

    def menu(self, *path: str) -> None:
        """Choose from the menu bar: ("Plugins", "Scribbles (napari-sparseseg)")."""
        place = f"entry(window.menuBar(), {path[0]!r})"
        self.click(place)
        for text in path[1:]:
            opened = f"popup({text!r}) is not None"
            if not self.soon(opened):  # a menu that opened by itself while the mouse rested was closed by the click
                self.click(place)
            self.until(opened)
            place = f"popup({text!r})"
            self.click(place)

    def choose_file(self, path: Path) -> None:
        """Type a path into the open file dialog."""
        self.until("modal() is not None")
        time.sleep(0.2)
        self.write(str(path))
        self.key("Return")
        self.until("modal() is None")

    def at(self, y: float, x: float) -> tuple[float, float]:
        """The point of the screen over level-0 pixel (y, x) of the slide."""
        left, top, width, height = self.ask("place(window._qt_viewer.canvas.native)")
        (_, cy, cx), zoom, ratio = self.ask(
            "(list(viewer.scene.camera.center), viewer.scene.camera.zoom, window.devicePixelRatioF())"
        )
        return left + width / 2 + (x - cx) * zoom * ratio, top + height / 2 + (y - cy) * zoom * ratio

    def drag(self, points: Iterable[tuple[float, float]], button: int = 1) -> None:
        """Press at the first point of the screen, move along the others, release at the last."""
        first, *rest = [(round(x), round(y)) for x, y in points]
        command: list[object] = ["mousemove", *first, "sleep", 0.05, "mousedown", button, "sleep", 0.03]
        for x, y in rest:
            command += ["mousemove", x, y, "sleep", 0.012]
        self._do(*command, "sleep", 0.03, "mouseup", button)
        time.sleep(0.1)

    def stroke(self, *corners: tuple[float, float], moves: int = 10) -> None:
        """Draw through level-0 pixels (y, x)."""
        points = [self.at(*corner) for corner in corners]
        path = [points[0]]
        for (x0, y0), (x1, y1) in pairwise(points):
            path += [(x0 + (x1 - x0) * k / moves, y0 + (y1 - y0) * k / moves) for k in range(1, moves + 1)]
        self.drag(path)

    # The end

    def kill(self) -> None:
        """As a crash or a power cut does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._socket.close()

    def quit(self) -> int:
        """Ctrl+Q, and Close to every question; returns the exit code."""
        self.key("ctrl+q")
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            try:
                asked = self.ask("modal() and press_of(modal(), 'Close')")
            except AssertionError:  # it is gone, or on its way
                asked = None
            if asked:
                self.click(repr(asked))
            time.sleep(0.1)
        return self.process.wait(1)
