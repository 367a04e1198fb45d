"""No pickle, no evaluated text, no network unless asked, and nothing of the patient leaves with an export."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tifffile

from tests.helpers.data import ROOT, two_textures, write_slide

PACKAGE = ROOT / "napari_sparseseg"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"} | {
    "ctypes", "imp", "code", "pty",
}  # fmt: skip
ALLOWED = {
    "learning/torch_runtime.py": {"ctypes"},
    "__init__.py": {"?"},
    "learning/export.py": {"?"},
    "io/qupath_project.py": {"urllib.parse"},
    "session/report.py": {"system"},
}
"""glibc's mallopt, with constants: no other way to it from Python. Own modules and packages from constant tables.
QuPath writes files as addresses, which are only taken apart. `platform.system` names the operating system."""
BUILT_IN = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "read_pickle",
    "to_pickle",
    "load_module",
    "load_state_dict_from_url",
    "set_sharing_strategy",
    "system",
    "popen",
}
NETWORK = {"socket", "urllib", "requests", "http", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib", "xmlrpc"}


def root(name):
    """`_pickle` is the same as `pickle`."""
    return name.split(".")[0].lstrip("_")


def named(node):
    """Modules that are imported by a name in a call or looked up among those loaded; "?" for a name not known here."""
    first = node.args[0] if isinstance(node, ast.Call) and node.args else getattr(node, "slice", None)
    called = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
    looked = isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "modules"
    if not called and not looked:
        return []
    return [first.value if isinstance(first, ast.Constant) else "?"]


def findings(path):
    """What a file does that could run or send what it is given."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [n for n in names if root(n) in MODULES | NETWORK]
            if isinstance(node, ast.ImportFrom) and any(a.asname for a in node.names if a.name == "import_module"):
                found.append("import_module under another name")
        elif isinstance(node, ast.Subscript):
            found += [n for n in named(node) if root(n) in MODULES | NETWORK]
        elif isinstance(node, ast.Call):
            found += [n for n in named(node) if root(n) in MODULES | NETWORK | {"?"}]
            keywords = {k.arg: k.value for k in node.keywords}
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            is_name = isinstance(node.func, ast.Name)
            if (is_name and name in BUILT_IN) or (not is_name and name in METHODS):
                found.append(name)
            of = node.func.value.id if not is_name and isinstance(getattr(node.func, "value", None), ast.Name) else ""
            if (of, name) == ("torch", "load"):
                only = keywords.get("weights_only")
                found += [] if isinstance(only, ast.Constant) and only.value is True else ["torch.load"]
            if "allow_pickle" in keywords or (isinstance(keywords.get("shell"), ast.Constant)):
                found.append("allow_pickle or shell")
            if name == "loads" and of == "yaml":
                found.append("yaml")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_run_or_sent(path):
    assert set(findings(path)) <= ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())


def test_the_search_finds_what_it_looks_for(tmp_path):
    bad = (
        "import pickle", "from urllib.request import urlopen", "eval('1')", "torch.load(p)", "os.system(p)",
        "from _pickle import UnpicklingError", "import _pickle", "import_module('pickle')", "import_module(name)",
        "importlib.import_module('_socket')", "from importlib import import_module as im", "sys.modules['pickle']",
        "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "subprocess.run(p, shell=True)",
    )  # fmt: skip
    for k, text in enumerate(bad):
        (tmp_path / f"{k}.py").write_text(text)
        assert findings(tmp_path / f"{k}.py"), text
    (tmp_path / "good.py").write_text("net.eval()\ntorch.load(p, weights_only=True)\n")
    assert not findings(tmp_path / "good.py")


END_TO_END = """
    import socket, sys
    def refuse(*args, **kwargs):
        raise AssertionError(f"this program called somebody: {args[:2]}")
    tried = []
    real = socket.socket
    class Closed(real):
        def connect(self, address):
            tried.append(address)
            refuse(address)
        def sendto(self, *args):
            tried.append(args)
            refuse(args)
    Closed.connect_ex = Closed.connect
    socket.socket = Closed
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        setattr(socket, name, lambda *a, **k: (tried.append(a), refuse(a)))
    from pathlib import Path
    from napari_sparseseg import Session
    from napari_sparseseg.config import TrainConfig
    folder = Path(sys.argv[1])
    with Session(["a", "b"], config=TrainConfig(patch_px=64, batch_size=2, device="cpu"), autosave=True) as session:
        session.open(folder / "a.tif")
        session.annotations.paint([(40, 20), (200, 90)], 6, 1)
        session.annotations.paint([(40, 160), (200, 240)], 6, 2)
        session.train(steps=2, wait=True)
        session.predict((0, 0, 128, 128))
        session.next_region()
        session.predict_slide(folder / "out.ome.zarr")
        session.predict_slide(folder / "out.ome.tif")
        session.annotations.to_geojson(folder / "a.geojson")
        session.save_model(folder / "m.safetensors")
        session.save(folder / "p")
    with Session.load(folder / "p.sparseseg") as session:
        assert session.model is not None
    assert not tried, tried
    print("done")
"""


def test_a_whole_session_calls_nobody(tmp_path):
    """Open, draw, train, predict, export, save and load with every way to an address closed."""
    write_slide(tmp_path / "a.tif", two_textures(256))
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(END_TO_END), str(tmp_path)],
        capture_output=True, text=True, timeout=200, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NAPARI_SPARSESEG_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert ended.stdout.split() == ["done"], ended.stderr


SECRET = "PATIENT-4711-DOE"
LABEL = (231, 17, 201)


@pytest.fixture
def labelled(tmp_path):
    """An SVS as a scanner writes it: with a photographed label and a macro image that show who the patient is."""
    path = tmp_path / "slides" / "a.svs"
    path.parent.mkdir()
    pixels = two_textures(256)
    header = "Aperio Image Library v11.2.1\r\n256x256 [0,0 256x256] (256x256) JPEG/RGB Q=70"
    options = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            pixels, tile=(256, 256), compression="jpeg", description=f"{header}|MPP = 0.5|Patient = {SECRET}",
            **options,
        )  # fmt: skip
        writer.write(np.ascontiguousarray(pixels[::4, ::4]), description=header, **options)
        for name, kind in (("label", 1), ("macro", 9)):
            image = np.full((60, 90, 3), LABEL, np.uint8)
            writer.write(image, subfiletype=kind, description=f"{header}\r\n{name} 90x60", **options)
    return path


def test_label_and_macro_images_and_who_the_patient_is_never_leave(labelled, tmp_path):
    from napari_sparseseg import Session
    from napari_sparseseg.config import TrainConfig

    out = tmp_path / "out"
    out.mkdir()
    with Session(["a", "b"], config=TrainConfig(patch_px=64, batch_size=2, device="cpu")) as session:
        slide = session.open(labelled)
        assert not (np.asarray(slide.thumbnail()[0]) == LABEL).all(axis=-1).any(), "the label is no level"
        session.annotations.paint([(40, 20), (200, 90)], 6, 1)
        session.annotations.paint([(40, 160), (200, 240)], 6, 2)
        session.train(steps=1, wait=True)
        session.predict_slide(out / "a.ome.zarr", geojson=out / "o.geojson", csv=out / "o.csv")
        session.predict_slide(out / "a.ome.tif")
        session.annotations.to_geojson(out / "a.geojson")
        session.annotations.save(out / "a.sparseseg")
        session.save_model(out / "m.safetensors")
        session.save(out / "p")
    written = [p for p in out.rglob("*") if p.is_file()]
    assert len(written) > 8
    for path in written:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert bytes(LABEL) * 8 not in content, path
    with tifffile.TiffFile(out / "a.ome.tif") as tif:
        assert not [s.name for s in tif.series if s.name.lower() in ("label", "macro", "thumbnail")]


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as is needed to download one file; it states the SHA-256 of what it should be."""

    stated, contents = "", []  # what it sends, the last again and again

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        if not self.path.endswith("/model.safetensors"):
            self.send_error(404)
            return
        self.send_response(200)
        headers = {
            "Content-Length": len(self.contents[0]), "ETag": f'"{self.stated}"', "X-Linked-Etag": f'"{self.stated}"',
            "X-Linked-Size": len(self.contents[0]), "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes",
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(self.contents.pop(0) if len(self.contents) > 1 else self.contents[0])

    def log_message(self, *args):
        pass


ENCODER = "test_resnet.r160_in1k"
ASK = """
    import sys
    from napari_sparseseg.errors import ModelError
    from napari_sparseseg.learning.encoders import Encoder
    for _ in range(2):
        try:
            print(round(float(sum(p.sum() for p in Encoder(sys.argv[1]).parameters())), 1))
        except ModelError as error:
            print(error)
"""


def test_downloads_are_checked_by_sha256(tmp_path, monkeypatch):
    """What was changed on the way, although it has the right length and loads, is not used, nor kept for the next."""
    import timm
    from safetensors.torch import save

    net = timm.create_model(ENCODER, pretrained=False)
    content = save({k: v.contiguous() for k, v in net.state_dict().items()})
    monkeypatch.setattr(Hub, "stated", hashlib.sha256(content).hexdigest())
    changed = content[:-1] + bytes([content[-1] ^ 1])
    monkeypatch.setattr(Hub, "contents", [changed, content])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(ASK), ENCODER],
            capture_output=True, text=True, timeout=200, cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
                 "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"},
        )  # fmt: skip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert ended.returncode == 0, ended.stderr
    refused, total = ended.stdout.splitlines()
    assert "sha256" in refused
    assert np.isfinite(float(total))
