"""Metadata of a TIFF file: vendor, micrometres per pixel and their source, channels, colours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.level import hex_colour

Mpp = tuple[float, float]
FINEST, COARSEST = 0.005, 20.0
"""Plausible um per pixel; 72 or 96 dots per inch (350 or 260 um) are the defaults of programs."""
UNITS_UM = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nm": 1e-3, "nanometer": 1e-3,
    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "inch": 25400.0, "in": 25400.0,
    "Å": 1e-4, "angstrom": 1e-4, "pm": 1e-6,
}  # fmt: skip
_ICC = 34675


@dataclass
class Facts:
    """The metadata of a TIFF file."""

    format: str = "TIFF"
    mpp: Mpp | None = None
    mpp_source: str = ""
    channels: tuple[str, ...] = ()
    colours: tuple[str | None, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def refuse_foreign_files(path: str, tif: Any) -> None:
    """Refuse an OME-TIFF whose pixels are in another folder.

    Raises
    ------
    SlideOpenError
        If a file name in the OME-XML contains a folder.
    """
    if not tif.is_ome:
        return
    for name in re.findall(r"""FileName\s*=\s*["']([^"']*)["']""", tif.pages.first.description):
        if "/" in name or "\\" in name or name.startswith(".."):
            raise SlideOpenError(path, f"its OME-XML points at another file, {name!r}", "Export it as one file.")


def facts(tif: Any, series: Any) -> Facts:
    """Read the metadata of a series."""
    page = series.keyframe
    out = Facts()
    if page.tags.get(_ICC) is not None:
        out.metadata["icc_profile_bytes"] = page.tags[_ICC].count
    try:
        _vendor(out, tif, series)
    except (ValueError, OverflowError) as error:
        out.warnings.append(f"its {out.format} metadata are invalid ({error}) and were only partly read")
    if out.mpp is None:
        _resolution_tags(out, tif, page)
    return out


def _vendor(out: Facts, tif: Any, series: Any) -> None:
    if tif.is_svs:
        _aperio(out, series.keyframe)
    elif tif.is_ome:
        _ome(out, tif, series)
    elif tif.is_qpi:
        _qptiff(out, series)
    elif tif.is_philips:
        _philips(out, tif)
    else:
        names = {"ndpi": "Hamamatsu NDPI", "scn": "Leica SCN", "bif": "Ventana BIF"}
        out.format = names.get(series.kind, "tiled TIFF" if series.keyframe.is_tiled else "TIFF")


def _resolution_tags(out: Facts, tif: Any, page: Any) -> None:
    unit, source = {2: 25400.0, 3: 1e4}.get(int(page.resolutionunit or 0)), "TIFF resolution tags"
    if tif.is_imagej and tif.imagej_metadata:
        unit, source = UNITS_UM.get(str(tif.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ")), "ImageJ unit"
    x, y = page.resolution
    if unit is None or not (x > 0 and y > 0):
        return
    mpp = (unit / y, unit / x)
    if all(FINEST <= v <= COARSEST for v in mpp):
        out.mpp, out.mpp_source = mpp, source
    else:
        out.metadata["ignored_resolution_um"] = mpp


def _aperio(out: Facts, page: Any) -> None:
    out.format = "Aperio SVS"
    items = (item.partition("=") for item in page.description.split("|"))
    said = {key.strip(): value.strip() for key, _, value in items}
    for key, name in {"Date": "scan_date", "ScanScope ID": "scanner"}.items():
        if key in said:
            out.metadata[name] = said[key]
    if "AppMag" in said:
        out.metadata["objective_power"] = float(said["AppMag"])
    mpp = float(said.get("MPP", 0))
    if FINEST <= mpp <= COARSEST:
        out.mpp, out.mpp_source = (mpp, mpp), "Aperio MPP"


def parse_xml(text: str) -> ElementTree.Element | None:
    """The root of an XML text; None if it is not well-formed."""
    try:
        return ElementTree.fromstring(text)  # noqa: S314  (tiff_guard refuses DOCTYPE and ENTITY)
    except (ElementTree.ParseError, ValueError):
        return None


def _ome(out: Facts, tif: Any, series: Any) -> None:
    out.format = "OME-TIFF"
    root = parse_xml(tif.pages.first.description)
    if root is None:
        out.warnings.append("its OME-XML is not well-formed and was not read")
        return
    images = root.findall("{*}Image")
    number = next(i for i, s in enumerate(tif.series) if s is series)
    pixels = images[min(number, len(images) - 1)].find("{*}Pixels") if images else None
    if pixels is None:
        return
    sizes = [_ome_length(pixels, axis) for axis in "YX"]
    if sizes[0] and sizes[1]:
        out.mpp, out.mpp_source = (sizes[0], sizes[1]), "OME PhysicalSize"
    objective = root.find("{*}Instrument/{*}Objective")
    if objective is not None and objective.get("NominalMagnification"):
        out.metadata["objective_power"] = float(objective.get("NominalMagnification", "0"))
    names: list[str] = []
    colours: list[str | None] = []
    for k, channel in enumerate(pixels.findall("{*}Channel")):
        for _ in range(int(channel.get("SamplesPerPixel", 1))):
            names.append(channel.get("Name") or channel.get("Fluor") or f"channel {k + 1}")
            colours.append(_ome_colour(channel.get("Color")))
    out.channels, out.colours = tuple(names), tuple(colours)


def _ome_length(pixels: ElementTree.Element, axis: str) -> float | None:
    value = float(pixels.get(f"PhysicalSize{axis}", 0))
    factor = UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return value * factor if value > 0 and factor else None


def _ome_colour(value: str | None) -> str | None:
    """``#rrggbb`` of an OME colour, a signed 32-bit RGBA value."""
    if value is None:
        return None
    rgba = int(value) & 0xFFFFFFFF
    return hex_colour(rgba >> 24, rgba >> 16, rgba >> 8)


def _qptiff(out: Facts, series: Any) -> None:
    out.format = "PerkinElmer / Akoya QPTIFF"
    names: list[str] = []
    colours: list[str | None] = []
    for k, page in enumerate(series.pages):
        page = page.aspage() if hasattr(page, "aspage") else page
        root = parse_xml(page.description)
        name = root.findtext("Name") or root.findtext("Biomarker") if root is not None else None
        names.append(name or f"channel {k + 1}")
        colour = [int(v) for v in re.findall(r"\d+", root.findtext("Color") or "")] if root is not None else []
        colours.append(hex_colour(*colour[:3]) if len(colour) >= 3 else None)
        power = root.findtext("Objective") if root is not None else None
        if power:
            out.metadata["objective_power"] = power
    out.channels, out.colours = tuple(names), tuple(colours)


def _philips(out: Facts, tif: Any) -> None:
    out.format = "Philips TIFF"
    out.metadata["sparse"] = True
    root = parse_xml(tif.philips_metadata or "")
    if root is None:
        return
    for element in root.iter("Attribute"):
        if element.get("Name") == "DICOM_PIXEL_SPACING" and element.text:
            values = [float(v) * 1000 for v in re.findall(r"[-+.\deE]+", element.text)]
            if len(values) == 2 and all(v > 0 for v in values):
                out.mpp, out.mpp_source = (values[0], values[1]), "Philips DICOM_PIXEL_SPACING"
                return
