"""Metadata of a TIFF file: vendor, micrometres per pixel, channels, colours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.slides.level import hex_colour
from napari_sparseseg.slides.resolution import Claim, length_um, micrometres, number

_ICC, _XMP, _ORIENTATION = 34675, 700, 274
_FORMATS = {"ndpi": "Hamamatsu NDPI", "scn": "Leica SCN", "bif": "Ventana BIF"}


@dataclass
class Facts:
    """The metadata of a TIFF file."""

    format: str = "TIFF"
    claims: list[Claim] = field(default_factory=list)
    """What the file says about its resolution, most trusted first."""
    channels: tuple[str, ...] = ()
    colours: tuple[str | None, ...] = ()
    listed: int = 0
    """Channels that the file lists; one of them may have several samples."""
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


def is_ventana(tif: Any) -> bool:
    """Whether it is a Ventana slide under any name. Its tiles may overlap, which only OpenSlide handles."""
    xmp = tif.pages.first.tags.valueof(_XMP) or b""
    return b"<iScan" in (xmp if isinstance(xmp, bytes) else str(xmp).encode())


def facts(tif: Any, series: Any, number_of_image: int) -> Facts:
    """Read the metadata of a series, which is image `number_of_image` of the file."""
    page = series.keyframe
    out = Facts()
    if page.tags.get(_ICC) is not None:
        out.metadata["icc_profile_bytes"] = page.tags[_ICC].count
    orientation = page.tags.valueof(_ORIENTATION) or 1
    if orientation != 1:
        out.warnings.append(f"its orientation tag ({orientation}) is ignored, as by Bio-Formats")
    try:
        _vendor(out, tif, series, number_of_image)
    except (ValueError, OverflowError, LookupError) as error:
        out.warnings.append(f"its {out.format} metadata are invalid ({error}) and were only partly read")
    out.claims.append(_resolution_tags(tif, page))
    return out


def _vendor(out: Facts, tif: Any, series: Any, number_of_image: int) -> None:
    if tif.is_svs:
        _aperio(out, tif.pages.first)
    elif tif.is_ome:
        _ome(out, tif, number_of_image)
    elif tif.is_qpi:
        _qptiff(out, series)
    elif tif.is_philips:
        _philips(out, tif)
    else:
        out.format = _FORMATS.get(series.kind, "tiled TIFF" if series.keyframe.is_tiled else "TIFF")
        if series.kind == "scn":
            _scn(out, tif, series.name)


def _resolution_tags(tif: Any, page: Any) -> Claim:
    unit, source = {2: 25400.0, 3: 1e4}.get(int(page.resolutionunit or 0)), "TIFF resolution tags"
    if tif.is_imagej and tif.imagej_metadata:
        unit, source = micrometres(tif.imagej_metadata.get("unit")), "ImageJ unit"
    x, y = page.resolution
    known = unit is not None and x > 0 and y > 0
    return Claim(source, unit / y if known and unit else None, unit / x if known and unit else None, is_default=True)


def _aperio(out: Facts, page: Any) -> None:
    out.format = "Aperio SVS"
    items = (item.partition("=") for item in page.description.split("|"))
    said = {key.strip(): value.strip() for key, _, value in items}
    for key, name in {"Date": "scan_date", "ScanScope ID": "scanner"}.items():
        if key in said:
            out.metadata[name] = said[key]
    power, mpp = number(said.get("AppMag")), number(said.get("MPP"))
    if power:
        out.metadata["objective_power"] = power
    out.claims.append(Claim("Aperio MPP", mpp, mpp))


def parse_xml(text: str) -> ElementTree.Element | None:
    """The root of an XML text; None if it is not well-formed."""
    try:
        return ElementTree.fromstring(text)  # noqa: S314  (tiff_guard refuses DOCTYPE and ENTITY)
    except (ElementTree.ParseError, ValueError):
        return None


def ome_images(tif: Any) -> list[ElementTree.Element]:
    """The ``Image`` elements of an OME-TIFF; none if its XML is not well-formed."""
    root = parse_xml(tif.pages.first.description)
    return [] if root is None else root.findall("{*}Image")


def _ome(out: Facts, tif: Any, number_of_image: int) -> None:
    out.format = "OME-TIFF"
    root = parse_xml(tif.pages.first.description)
    if root is None:
        out.warnings.append("its OME-XML is not well-formed and was not read")
        return
    images = root.findall("{*}Image")
    image = images[min(number_of_image, len(images) - 1)] if images else None
    pixels = image.find("{*}Pixels") if image is not None else None
    if image is None or pixels is None:
        return
    sizes = [length_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "YX"]
    out.claims.append(Claim("OME PhysicalSize", sizes[0], sizes[1]))
    objectives = {o.get("ID"): o for o in root.findall("{*}Instrument/{*}Objective")}
    settings = image.find("{*}ObjectiveSettings")
    wanted = objectives.get(settings.get("ID")) if settings is not None else next(iter(objectives.values()), None)
    power = number(wanted.get("NominalMagnification")) if wanted is not None else None
    if power:
        out.metadata["objective_power"] = power
    names: list[str] = []
    colours: list[str | None] = []
    for k, channel in enumerate(pixels.findall("{*}Channel")):
        for _ in range(min(int(channel.get("SamplesPerPixel", 1)), 1024)):
            names.append(channel.get("Name") or channel.get("Fluor") or f"channel {k + 1}")
            colours.append(_ome_colour(channel.get("Color")))
    out.channels, out.colours = tuple(names), tuple(colours)
    out.listed = len(pixels.findall("{*}Channel"))


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
    """The pixel spacing of the scan; the file lists those of its macro and label images too, in any order."""
    out.format = "Philips TIFF"
    root = parse_xml(tif.philips_metadata or "")
    if root is None:
        return
    scans = [
        image
        for image in root.iter("DataObject")
        if image.get("ObjectType") == "DPScannedImage"
        and (_philips_value(image, "PIM_DP_IMAGE_TYPE") or "WSI") == "WSI"
    ]
    for scan in scans or [root]:
        parts = [scan, *(p for p in scan.iter("DataObject") if p.get("ObjectType") == "PixelDataRepresentation")]
        spacing = next((s for p in parts if (s := _philips_value(p, "DICOM_PIXEL_SPACING"))), "")
        sizes = [length_um(v, "mm") for v in spacing.replace('"', " ").split()]
        if len(sizes) == 2:
            out.claims.append(Claim("Philips DICOM_PIXEL_SPACING", sizes[0], sizes[1]))
            return


def _philips_value(element: ElementTree.Element, name: str) -> str | None:
    return next((a.text for a in element.findall("Attribute") if a.get("Name") == name and a.text), None)


def _scn(out: Facts, tif: Any, name: str) -> None:
    """Leica gives the size of an image in nm."""
    for image in scn_images(tif)[1]:
        if image.get("name") == name:
            pixels, view = image.find("{*}pixels"), image.find("{*}view")
            if pixels is not None and view is not None:
                sizes = [(number(view.get(f"size{a}")), number(pixels.get(f"size{a}"))) for a in "YX"]
                y, x = (nm / n / 1000 if nm and n else None for nm, n in sizes)
                out.claims.append(Claim("Leica view", y, x))
            out.metadata["objective_power"] = number(image.findtext(".//{*}objective"))
            return


def scn_images(tif: Any) -> tuple[list[str], list[ElementTree.Element]]:
    """Names of the macro images of a Leica SCN (those that cover the whole collection), and all its images."""
    root = parse_xml(tif.pages.first.description)
    macros, images = [], []
    for collection in root.findall("{*}collection") if root is not None else []:
        whole = [collection.get("sizeX"), collection.get("sizeY")]
        for image in collection.findall("{*}image"):
            view = image.find("{*}view")
            images.append(image)
            if view is not None and [view.get("sizeX"), view.get("sizeY")] == whole:
                macros.append(image.get("name") or "")
    return macros, images
