"""Models of other programs as files: ``.onnx``, and bioimage.io packages ``.zip`` with an ``rdf.yaml``.

Nothing of a package is unpacked to disk and nothing is fetched: of its entries two are read, within bounds. What a
package or the metadata of an ONNX file says is checked here and becomes `NetworkFacts`; the network itself is for
`onnx_graph`.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning.tensor_steps import Step, read_steps

MOST_BYTES = 2**31 - 1
"""Of an ONNX file: what its format can hold."""
_MOST_TEXT = 1 << 20
_MOST_ENTRIES = 1000
_MOST_PACKAGE = 2 * MOST_BYTES
_MOST_RATIO = 200
"""Weights hardly shrink; a small entry may."""
_SMALL = 16 << 20
_DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
_MICROMETRES = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
_LETTERS = {"batch": "b", "channel": "c", "y": "y", "x": "x"}
_NUMBERED = re.compile(r"(channel|class|c)?[_ ]?\d+")


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What a package, or the metadata of an ONNX file, says of a network. Empty and None: it does not say."""

    axes: str = ""
    """Of the input, such as ``bcyx``."""
    output_axes: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    """(least, step) of height and width; step 0: this size alone."""
    halo: int | None = None
    channels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of the classes."""
    ids: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()
    mpp: float | None = None
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    rules: dict[str, Any] = field(default_factory=dict)
    """Of a model that this program exported."""
    described: bool = False
    """Whether anything says what the input is."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> NetworkFacts:
        """Read what `to_json` wrote.

        Raises
        ------
        ModelError
            Where a value is of the wrong kind.
        """
        try:
            values = {k: v for k, v in dict(data).items() if k in {f.name for f in fields(cls)}}
            for name in ("channels", "names", "ids", "colours"):
                values[name] = tuple(values.get(name, ()))
            values["sizes"] = tuple((int(least), int(step)) for least, step in values.get("sizes", ()))
            for name in ("before", "after"):
                values[name] = tuple(
                    Step(s["kind"], tuple(map(float, s["first"])), tuple(map(float, s["second"])), str(s["dtype"]))
                    for s in values.get(name, ())
                )
            return cls(**values).checked()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"what is said of the network cannot be read: {type(error).__name__} {error}.") from error

    def checked(self) -> NetworkFacts:
        """Itself.

        Raises
        ------
        ModelError
            For values that no network has.
        """
        texts = (*self.channels, *self.names, *self.colours)
        halo_fits = self.halo is None or (type(self.halo) is int and 0 <= self.halo <= 4096)
        mpp_fits = self.mpp is None or (type(self.mpp) in (int, float) and 0.01 <= self.mpp <= 1000)
        fits = {
            "axes": all(type(a) is str and set(a) <= set("bcyx") for a in (self.axes, self.output_axes)),
            "sizes": len(self.sizes) in (0, 2) and all(1 <= a <= 1 << 16 and 0 <= s <= 4096 for a, s in self.sizes),
            "halo": halo_fits,
            "names": len(texts) <= 1024 and all(type(t) is str and 0 < len(t) <= 500 for t in texts),
            "class ids": all(type(i) is int for i in self.ids) and len(self.ids) in (0, len(self.names)),
            "um per pixel": mpp_fits,
            "rules": type(self.rules) is dict,
        }
        wrong = [name for name, ok in fits.items() if not ok]
        if wrong:
            raise ModelError(f"what the file says of its {wrong[0]} cannot be; it is damaged, or not for segmentation.")
        return self


def read_onnx_file(path: Path) -> bytes:
    """The bytes of an ``.onnx`` file; `ModelError` where it cannot be read, or is larger than any can be."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block for ever
            raise ModelError(f"model {path} is not an ordinary file. Choose a model file.")
        require_room(path.stat().st_size, str(path))
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror or error}. Check the path.") from error


def require_room(size: int, name: str) -> None:
    """Refuse weights that are too large for the format or for the memory that is free.

    Raises
    ------
    ModelError
        Saying how large they are.
    """
    import psutil

    if not 0 < size <= MOST_BYTES:
        raise ModelError(f"{name} has {size:,} bytes, and an ONNX file has 1 to {MOST_BYTES:,}. Choose another file.")
    free = psutil.virtual_memory().available
    if 4 * size > free:
        raise ModelError(
            f"{name} has {size / 1e6:,.0f} MB; to check and run it takes four times as much, and {free / 1e6:,.0f} MB "
            "of memory are free. Close other programs."
        )


def read_package(path: Path) -> tuple[bytes, NetworkFacts]:
    """ONNX weights and description of a bioimage.io package.

    Raises
    ------
    ModelError
        For anything else, and for a package whose entries lead elsewhere or unpack to more than they may.
    """
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"model {path} is not an ordinary file. Choose a model file.")
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(archive, path)
            named = [n for n in entries if PurePosixPath(n).name in _DESCRIPTIONS and n.count("/") < 2]
            if not named:
                raise ModelError(f"{path} is no bioimage.io package: it has no rdf.yaml. Choose a model file.")
            top = min(named, key=lambda n: n.count("/"))
            described = _parsed(_read(archive, entries[top], _MOST_TEXT, path), path)
            facts = described_facts(described, str(path))
            source, digest = _weights(described, path)
            inside = str(PurePosixPath(top).parent / source)
            if inside not in entries:
                raise ModelError(f"{path} lacks its weights {source[:200]!r}; use another copy of the package.")
            require_room(entries[inside].file_size, f"{path}: {inside}")
            weights = _read(archive, entries[inside], MOST_BYTES, path)
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror or error}. Check the path.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is no zip file, or is damaged or cut short: {error}. Use another copy of the package."
        ) from error
    if digest is not None and hashlib.sha256(weights).hexdigest() != digest:
        raise ModelError(f"the weights in {path} are not those that its rdf.yaml names (SHA-256); use another copy.")
    return weights, facts


def _checked_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of a package by name, none of which leads out of it."""
    infos = archive.infolist()
    if len(infos) > _MOST_ENTRIES or sum(i.file_size for i in infos) > _MOST_PACKAGE:
        raise ModelError(f"{path} holds more than a package may ({_MOST_ENTRIES} files, 4 GB); it was not opened.")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename
        parts = name.replace("\\", "/").split("/")
        link = stat.S_ISLNK(info.external_attr >> 16)
        if ".." in parts or parts[0] == "" or ":" in parts[0] or "\\" in name or "\0" in name or link:
            raise ModelError(f"{path} has an entry {name[:100]!r} that leads out of the package; it was not opened.")
        if name in found:
            raise ModelError(f"{path} has two entries {name[:100]!r}; use another copy of the package.")
        if info.file_size > _SMALL and info.file_size > _MOST_RATIO * info.compress_size:
            raise ModelError(
                f"{path}: {name[:100]!r} would unpack from {info.compress_size:,} to {info.file_size:,} bytes, as no "
                "weights do; it was not opened."
            )
        found[name] = info
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int, path: Path) -> bytes:
    """An entry; never more than it says, and than `most`."""
    if info.flag_bits & 1:
        raise ModelError(f"{path}: {info.filename!r} is encrypted; unpack it and make the package anew.")
    if info.file_size > most:
        raise ModelError(f"{path}: {info.filename!r} has {info.file_size:,} bytes; {most:,} are possible.")
    with archive.open(info) as file:
        return file.read(info.file_size)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """The description as plain values; `ModelError` for what is not one, and for aliases, which can grow it."""
    try:
        import yaml
    except ImportError as error:
        raise ModelError(
            f"{path} needs {error.name}; run: pip install 'napari-sparseseg[onnx]', then open it again."
        ) from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ModelError(f"the rdf.yaml of {path} uses aliases, which are not read.")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the rdf.yaml of {path} cannot be read: {reason}. Use another copy of the package."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"the rdf.yaml of {path} is no description. Use another copy of the package.")
    return found


def _weights(described: dict[str, Any], path: Path) -> tuple[str, str | None]:
    """Name and SHA-256 of the ONNX weights."""
    weights = described.get("weights")
    if not isinstance(weights, dict) or not isinstance(weights.get("onnx"), dict):
        kinds = ", ".join(map(str, weights))[:100] if isinstance(weights, dict) else "none"
        raise ModelError(
            f"{path} has no ONNX weights (it has: {kinds}). Other weights can run code, or need their own program, and "
            "are not opened."
        )
    source, digest = weights["onnx"].get("source"), weights["onnx"].get("sha256")
    if not isinstance(source, str) or "://" in source:
        raise ModelError(f"the weights of {path} are at {str(source)[:200]!r}; download the whole package instead.")
    return source.removeprefix("./"), digest if isinstance(digest, str) else None


def described_facts(described: dict[str, Any], where: str) -> NetworkFacts:
    """What an ``rdf.yaml`` of format 0.4 or 0.5 says.

    Raises
    ------
    ModelError
        For another format, for several inputs or outputs, for axes and steps that slides do not have.
    """
    version = str(described.get("format_version", ""))
    if described.get("type", "model") != "model" or not version.startswith(("0.4", "0.5")):
        raise ModelError(
            f"{where} is a bioimage.io {str(described.get('type', 'model'))[:50]} of format {version[:20] or '?'}: "
            "only models, of 0.4 and 0.5, can be opened."
        )
    taken, given = (_only(described.get(name), name, where) for name in ("inputs", "outputs"))
    try:
        facts = (_old if version.startswith("0.4") else _new)(taken, given, where)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the rdf.yaml of {where} cannot be read: {type(error).__name__} {error}. Use another copy of the package."
        ) from error
    return facts.checked()


def _only(tensors: Any, name: str, where: str) -> dict[str, Any]:
    found = [t for t in tensors if isinstance(t, dict)] if isinstance(tensors, list) else []
    needed = [t for t in found if not t.get("optional")]
    if len(needed) != 1 or len(found) > 1:
        raise ModelError(f"{where} has {len(found)} {name}; models of one image in and one out can be run over slides.")
    return needed[0]


def _old(taken: dict[str, Any], given: dict[str, Any], where: str) -> NetworkFacts:
    """Format 0.4: axes as letters, sizes as lists."""
    axes, output_axes = _axes(str(taken["axes"]), where), _axes(str(given["axes"]), where)
    shape = taken["shape"]
    listed = zip(shape["min"], shape["step"], strict=True) if isinstance(shape, dict) else ((n, 0) for n in shape)
    pairs = list(listed)
    halo = given.get("halo") or [0] * len(output_axes)
    return NetworkFacts(
        axes,
        output_axes,
        tuple((int(pairs[axes.index(a)][0]), int(pairs[axes.index(a)][1])) for a in "yx"),
        max(int(halo[output_axes.index(a)]) for a in "yx") or None,
        before=read_steps(taken.get("preprocessing"), where),
        after=read_steps(given.get("postprocessing"), where),
        described=True,
    )


def _new(taken: dict[str, Any], given: dict[str, Any], where: str) -> NetworkFacts:
    """Format 0.5: each axis described."""
    letters = [
        _axes("".join(_LETTERS.get(a["id"] if a["type"] == "space" else a["type"], "?") for a in t["axes"]), where)
        for t in (taken, given)
    ]
    ours, theirs = (dict(zip(k, t["axes"], strict=True)) for k, t in zip(letters, (taken, given), strict=True))
    sizes = []
    for side in (ours["y"], ours["x"]):
        size = side["size"]
        sizes.append((int(size), 0) if isinstance(size, int) else (int(size["min"]), int(size["step"])))
    return NetworkFacts(
        letters[0],
        letters[1],
        tuple(sizes),
        max(int(theirs[a].get("halo", 0)) for a in "yx") or None,
        _names(ours.get("c")),
        _names(theirs.get("c")),
        mpp=_mpp(ours["y"], ours["x"], where),
        before=read_steps(taken.get("preprocessing"), where),
        after=read_steps(given.get("postprocessing"), where),
        described=True,
    )


def _axes(axes: str, where: str) -> str:
    if set(axes) - set("bcyx") or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise ModelError(f"{where} has axes {axes[:20]!r}; 2-D images (b, c, y, x) can be predicted, not 3-D.")
    return axes


def _names(axis: Any) -> tuple[str, ...]:
    """Channel names; empty where they are only numbers."""
    names = [str(n).replace("_", " ").strip()[:100] for n in (axis or {}).get("channel_names", ())]
    if any(not n or _NUMBERED.fullmatch(n) for n in names) or len(set(map(str.casefold, names))) != len(names):
        return ()
    return tuple(names)


def _mpp(y: dict[str, Any], x: dict[str, Any], where: str) -> float | None:
    found = []
    for axis in (y, x):
        factor, scale = _MICROMETRES.get(str(axis.get("unit"))), axis.get("scale", 1.0)
        if factor is None:
            return None
        found.append(factor * float(scale))
    if not abs(found[0] - found[1]) <= 0.01 * found[0]:
        raise ModelError(f"{where} takes pixels of {found[0]:g} x {found[1]:g} um; only square ones can be predicted.")
    return found[0]
