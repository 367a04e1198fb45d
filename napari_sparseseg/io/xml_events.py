"""XML of annotation programs, read event by event: no entities, no recursion, any encoding that Python knows."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Protocol
from xml.parsers import expat

from napari_sparseseg.errors import AnnotationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from napari_sparseseg.io.shapes import Document

_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*")
_LARGEST = 1e12
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
_EXPAT_READS = ("utf-8", "utf-16", "ascii", "iso8859-1")
# Root elements of other formats.
_OTHER_FORMATS = {
    "annotation": "Pascal VOC or LabelImg",
    "svg": "a drawing (SVG)",
    "OME": "OME-XML",
    "kml": "KML",
    "MetaData": "a microdissection or acquisition program",
    "ImageData": "a microdissection program (Leica LMD)",
}


class XmlReader(Protocol):
    """Collects what the elements of one format contain."""

    def start(self, tag: str, values: dict[str, str]) -> None:
        """An element begins."""

    def end(self, tag: str, text: str) -> None:
        """An element ends; `text` is what it contains directly after its last child."""

    def document(self) -> Document:
        """What was found."""


def parse_xml(data: bytes, readers: Mapping[str, Callable[[], XmlReader]]) -> Document:
    """The shapes in an XML file.

    Parameters
    ----------
    data
        Contents of the file.
    readers
        By the name of the root element.

    Raises
    ------
    AnnotationError
        Where it is not XML, of another format, or declares a document type or entities.
    """
    found: list[XmlReader] = []
    text: list[str] = []

    def start(tag: str, values: dict[str, str]) -> None:
        if not found:
            if tag not in readers:
                what = _OTHER_FORMATS.get(tag, f"an unknown program (its root element is {tag[:40]!r})")
                raise AnnotationError(
                    f"it is XML of {what}; only the XML of ASAP, ImageScope, HALO and NDP.view is read."
                )
            found.append(readers[tag]())
        text.clear()
        found[0].start(tag, values)

    def end(tag: str) -> None:
        found[0].end(tag, "".join(text))
        text.clear()

    data, encoding = _decoded(data)
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise AnnotationError(f"it is not valid XML: {error}.") from error
    return found[0].document()


def _decoded(data: bytes) -> tuple[bytes, str | None]:
    """The contents in an encoding that the parser knows, and its name where it is not the declared one."""
    declared = _ENCODING.match(data[:300])
    if declared is None:
        return data, None
    name = declared[1].decode("ascii")
    try:
        codec = codecs.lookup(name)
        if codec.name in _EXPAT_READS:
            return data, None
        return data.decode(codec.name).encode("utf-8"), "utf-8"
    except (LookupError, UnicodeError) as error:
        raise AnnotationError(f"its encoding {name} cannot be read ({error}); save it as UTF-8.") from error


def _refuse(*_: object) -> None:
    raise AnnotationError("it declares a document type or entities, which no annotation program does.")


def number(text: str | None, what: str) -> float:
    """A number, with a decimal point or comma.

    Raises
    ------
    AnnotationError
        For anything else.
    """
    if text is None or not _NUMBER.fullmatch(text):
        raise AnnotationError(f"{what} is {text if text is None else text[:60]!r}, which is not a number.")
    value = float(text.replace(",", "."))
    if not abs(value) <= _LARGEST:
        raise AnnotationError(f"{what} is {text[:60]}; coordinates must be finite and within +-{_LARGEST:.0e}.")
    return value
