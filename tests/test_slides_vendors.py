"""Slides as scanners and converters write them: colours, resolution, several images, holes. Other readers are asked."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from PIL import Image

from napari_sparseseg.cli.files import describe
from napari_sparseseg.errors import SlideOpenError
from napari_sparseseg.geometry import Box
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.resolution import Claim, micrometres, number, resolve
from tests.helpers.bioformats import bioformats, needs_bioformats
from tests.helpers.slide_files import APERIO, mean2, texture, write_ome, write_svs, write_zarr
from tests.helpers.vendor_files import (
    YCC_422,
    jpeg2000,
    leave_out_tiles,
    mrxs,
    ndpi,
    scn,
    set_short,
    ventana,
)

if TYPE_CHECKING:
    from napari_sparseseg.slides import Slide

H, W = 192, 256
PIXELS = texture(H, W)
UM_PER_INCH = 25400


def whole(slide: Slide) -> np.ndarray:
    return slide.read((0, 0, *slide.shape))


def by_openslide(path, level: int = 0) -> np.ndarray:
    """RGBA of a whole level."""
    with openslide.OpenSlide(str(path)) as other:
        return np.asarray(other.read_region((0, 0), level, other.level_dimensions[level]))


def by_pillow(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def difference(a, b) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# ---- resolution


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25), ("0,2520", 0.252), (" 40x", 40), ("4.4E-4 mm", 4.4e-4), ("-1", -1), (".5", 0.5), ("20,0", 20),
        (7, 7), ("", None), ("x", None), (None, None), ("nan", None), ("inf", None), ("1e999", None),
    ],
)  # fmt: skip
def test_numbers_of_other_programs(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("µm", 1), ("\u03bcm", 1), ("\\u00B5m", 1), ("Microns", 1), ("micrometer", 1), ("mm", 1000), ("nm", 1e-3),
        ("inch", UM_PER_INCH), ("inches", UM_PER_INCH), ("Å", 1e-4), ("", None), (None, None), ("pixel", None),
        ("reference frame", None),
    ],
)  # fmt: skip
def test_units_of_length(unit, um):
    assert micrometres(unit) == um


def test_the_first_plausible_claim_wins_and_the_rest_is_said():
    found = resolve(
        [
            Claim("header", None, None),
            Claim("label", 31.5, 31.5),
            Claim("dots per inch", 352.8, 352.8, is_default=True),
            Claim("vendor", 0.25, None),
            Claim("same", 0.251, 0.249),
            Claim("tags", 0.5, 0.5),
        ]
    )
    assert (found.mpp, found.source) == ((0.25, 0.25), "vendor")
    assert found.warnings == (
        "label: 31.5 um per px is implausible (outside 0.05 to 20) and ignored",
        "tags: 0.5 um per px contradicts vendor (0.25), which is used",
    )
    assert resolve([Claim("a", 0, 0), Claim("b", float("nan"), 1.0), Claim("c", -1, -1)]).mpp is None


@pytest.mark.parametrize(
    "change",
    [("MPP = 0.2520", "MPP = 0,2520"), ("AppMag = 40", "AppMag = "), ("AppMag = 40", "AppMag = 40x"), ("", "")],
)
def test_aperio_fields_that_are_no_plain_numbers(tmp_path, change):
    path = tmp_path / "a.svs"
    text = APERIO.format(w=W, h=H, t=64, mpp="0.2520").replace(*change)
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", metadata=None, description=text)
    with openslide.OpenSlide(str(path)) as other:
        assert float(other.properties["openslide.mpp-x"]) == 0.252
    with open_slide(path) as slide:
        assert slide.mpp == (0.252, 0.252)
        assert slide.warnings == ()


def test_aperio_description_with_bytes_that_are_no_text(tmp_path):
    """KFBIO scanners end the description so; the slide must not lose its resolution and its levels with it."""
    path = tmp_path / "a.svs"
    text = b"Aperio Format Scanned By KFBIO\r\n|AppMag = 20|MPP = 0.484490|Time-Used = \x03(\x3a.):\x8d,\x81"
    options = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "description": text}
    with tifffile.TiffWriter(path) as tif:
        tif.write(PIXELS, **options)
        tif.write(PIXELS[::16, ::16], photometric="rgb", metadata=None, rowsperstrip=16)
        tif.write(mean2(PIXELS), **options)
    with openslide.OpenSlide(str(path)) as other, open_slide(path) as slide:
        assert other.level_count == len(slide.levels) == 2
        assert slide.mpp == pytest.approx((float(other.properties["openslide.mpp-y"]),) * 2)
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert slide.warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "mpp", "warning"),
    [
        (b'"0.25"', b'"0,25"', 0.25, ""),
        (b'X="0.25"', b'X="2.5e-4" PhysicalSizeXUnit="mm"', 0.25, ""),
        (b'Y="0.25"', b'Y="0.25" PhysicalSizeYUnit="\xb5m"', 0.25, ""),  # Latin-1 in a file that says UTF-8
        (b'="0.25"', b'="250"', None, "OME PhysicalSize: 250 um per px is implausible"),
        (b'PhysicalSizeY="0.25"', b"", 0.25, ""),
    ],
)
def test_ome_physical_size(tmp_path, old, new, mpp, warning):
    path = tmp_path / "a.ome.tif"
    size = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", metadata=size)
    with tifffile.TiffFile(path) as tif:
        text = tif.pages[0].description.encode()
    assert old in text
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", metadata=None, description=text.replace(old, new))
    with open_slide(path) as slide:
        assert slide.contents.format == "OME-TIFF"
        assert slide.mpp == (None if mpp is None else pytest.approx((mpp, mpp)))
        assert slide.warnings == () if not warning else slide.warnings[0].startswith(warning)


def test_resolution_tags_that_contradict_the_vendor_are_said(tmp_path):
    path = tmp_path / "a.svs"
    write_svs(path, PIXELS, levels=1, resolution=(20000, 20000), resolutionunit="centimeter")
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "Aperio MPP")
        assert any("TIFF resolution tags: 0.5 um per px contradicts Aperio MPP (0.25)" in w for w in slide.warnings)


def philips(images: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        f"{images}</Array></Attribute></DataObject>"
    )


def philips_image(kind: str, mm: float, levels: int = 0) -> str:
    def spacing(value: float) -> str:
        return (
            '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
            f"&quot;{value}&quot; &quot;{value}&quot;</Attribute>"
        )

    parts = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(mm * 2**k)}<Attribute '
        f'Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x301D" Element="0x2000" PMSVR="IUInt16">{k}</Attribute>'
        "</DataObject>"
        for k in range(levels)
    )
    sequence = (
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IDataObjectArray"><Array>{parts}</Array></Attribute>'
    )
    return (
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" '
        f'PMSVR="IString">{kind}</Attribute>{spacing(mm)}{sequence if levels else ""}</DataObject>'
    )


def test_philips_lists_the_macro_image_first(tmp_path):
    path = tmp_path / "a.tiff"
    text = philips(philips_image("MACROIMAGE", 0.0315) + philips_image("WSI", 0.00025, levels=2))
    options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(PIXELS, description=text, software="Philips DP v1.0", **options)
        tif.write(mean2(PIXELS), description="level=1 mag=20", software="Philips DP v1.0", subfiletype=1, **options)
    with openslide.OpenSlide(str(path)) as other, open_slide(path) as slide:
        assert float(other.properties["openslide.mpp-x"]) == 0.25
        assert slide.mpp == pytest.approx((0.25, 0.25))


# ---- colours


def ycc(rgb) -> np.ndarray:
    """YCbCr by the formula of JFIF."""
    r, g, b = (rgb[..., k].astype(float) for k in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1).round().clip(0, 255).astype(np.uint8)


def j2k(pixels):
    return lambda y, x: imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(pixels[y : y + 64, x : x + 64]), codecformat="j2k", mct=False, reversible=True
    )


def test_aperio_33003_is_ycbcr_as_openslide_shows_it(tmp_path):
    path = tmp_path / "a.svs"
    jpeg2000(path, (H, W), j2k(ycc(PIXELS)), 33003, metadata=None, description=APERIO.format(w=W, h=H, t=64, mpp=0.25))
    with open_slide(path) as slide:
        assert difference(whole(slide), by_openslide(path)[..., :3]) <= 1
        assert difference(whole(slide), PIXELS) <= 2


def test_aperio_33003_with_chroma_at_half_width(tmp_path):
    """OpenJPEG converts these to RGB by itself; they must not be converted again."""
    path = tmp_path / "a.svs"
    text = APERIO.format(w=128, h=64, t=64, mpp=0.25)
    jpeg2000(path, (64, 128), lambda y, x: YCC_422, 33003, metadata=None, description=text)
    wanted = np.where((np.arange(64) < 32)[:, None], (200, 120, 170), (90, 60, 140))
    with open_slide(path) as slide:
        got = whole(slide)
        assert difference(got, by_openslide(path)[..., :3]) <= 2
        assert difference(got, np.broadcast_to(np.tile(wanted, (2, 1)), (64, 128, 3))) <= 2


@pytest.mark.parametrize("name", ["33005 Aperio", "33003 of Bio-Formats"])
def test_other_jpeg_2000_is_rgb(tmp_path, name):
    path = tmp_path / ("a.svs" if "Aperio" in name else "a.ome.tif")
    options = {"metadata": {"axes": "YXS"}}
    if "Aperio" in name:
        options = {"metadata": None, "description": APERIO.format(w=W, h=H, t=64, mpp=0.25)}
    jpeg2000(path, (H, W), j2k(PIXELS), int(name[:5]), **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)


@pytest.mark.parametrize("photometric", [2, 6])
def test_planar_jpeg_is_one_grey_jpeg_per_colour_whatever_its_tag_says(tmp_path, photometric):
    """bfconvert writes the tag of interleaved JPEG."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.moveaxis(PIXELS, -1, 0), tile=(64, 64), compression="jpeg", photometric="rgb",
                     planarconfig="separate", metadata={"axes": "SYX"})  # fmt: skip
    with tifffile.TiffFile(path) as tif:
        wanted = np.moveaxis(tif.pages[0].asarray(), 0, -1)
    set_short(path, 262, photometric)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), wanted)
        assert slide.bad_tiles == 0


@pytest.mark.parametrize("tiled", [True, False])
def test_cmyk_as_pillow(tmp_path, tiled):
    path = tmp_path / "a.tif"
    cmyk = np.concatenate([PIXELS, texture(H, W, 1, seed=3) // 2], axis=2)
    options = {"tile": (64, 64)} if tiled else {"rowsperstrip": 50}
    tifffile.imwrite(path, cmyk, photometric="separated", metadata=None, compression="zlib", **options)
    with open_slide(path) as slide:
        assert slide.is_rgb
        assert slide.background == (255, 255, 255)
        assert difference(whole(slide), by_pillow(path)) <= 1


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("cmyk.jpg", "CMYK", {"quality": 95}),
        ("grey.jpg", "L", {}),
        ("palette.png", "P", {}),
        ("bilevel.png", "1", {}),
        ("palette.gif", "P", {}),
    ],
)
def test_plain_images_of_other_colours_as_pillow(tmp_path, name, mode, options):
    path = tmp_path / name
    picture = Image.fromarray(PIXELS).convert(mode)
    if mode == "CMYK":  # Photoshop writes inverted CMYK with an Adobe marker, and so does Pillow
        picture = Image.merge("CMYK", [band.point(lambda v: v // 2) for band in picture.split()])
    picture.save(path, **options)
    with open_slide(path) as slide:
        assert difference(whole(slide), by_pillow(path)[..., : len(slide.channels)]) <= 1


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_alpha_straight_and_premultiplied(tmp_path, extra):
    path = tmp_path / "a.tif"
    alpha = texture(H, W, 1, seed=5)
    colours = PIXELS if extra == "unassalpha" else (PIXELS * (alpha / 255)).round().astype(np.uint8)
    rgba = np.concatenate([colours, alpha], axis=2)
    tifffile.imwrite(path, rgba, tile=(64, 64), photometric="rgb", extrasamples=[extra], metadata=None)
    share = alpha / 255
    with open_slide(path) as slide:
        assert np.abs(whole(slide) - (PIXELS * share + 255 * (1 - share))).max() <= 1.01


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16), (4, np.uint8)])
def test_white_is_zero_of_any_depth(tmp_path, bits, dtype):
    path = tmp_path / "a.tif"
    grey = (texture(H, W, 1, np.uint16, seed=2)[..., 0] >> (16 - bits)).astype(dtype)
    options = {"bitspersample": bits} if bits in (4, 12) else {"tile": (64, 64)}
    try:
        tifffile.imwrite(path, grey, photometric="miniswhite", metadata=None, **options)
    except ValueError:
        pytest.fail("tifffile cannot write this depth")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide)[..., 0], (2**bits - 1) - grey)


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
def test_bilevel_as_pillow(tmp_path, photometric):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS[..., 0] > 120, photometric=photometric, metadata=None)
    with open_slide(path) as slide, Image.open(path) as image:
        np.testing.assert_array_equal(whole(slide)[..., 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("tiled", [True, False])
def test_a_palette_is_colour_as_pillow_shows_it(tmp_path, tiled):
    path = tmp_path / "a.tif"
    index = PIXELS[..., 0]
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    options = {"tile": (64, 64)} if tiled else {}
    tifffile.imwrite(path, index, photometric="palette", colormap=table, metadata=None, **options)
    with open_slide(path) as slide:
        assert slide.is_rgb
        np.testing.assert_array_equal(whole(slide), by_pillow(path))


def test_lookup_tables_of_fluorescence_channels_do_not_change_values(tmp_path):
    path = tmp_path / "a.ome.tif"
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    channels = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC"]}}
    tifffile.imwrite(path, np.moveaxis(PIXELS[..., :2], -1, 0), photometric="palette", colormap=green,
                     metadata=channels)  # fmt: skip
    with open_slide(path) as slide:
        assert (slide.is_rgb, slide.channels) == (False, ("DAPI", "FITC"))
        np.testing.assert_array_equal(whole(slide), PIXELS[..., :2])


def test_one_channel_takes_its_colour_from_its_lookup_table(tmp_path):
    path = tmp_path / "a.ome.tif"
    magenta = np.zeros((3, 256), np.uint16)
    magenta[0] = magenta[2] = np.arange(256) * 257
    tifffile.imwrite(path, PIXELS[..., 0], photometric="palette", colormap=magenta, metadata={"axes": "YX"})
    with open_slide(path) as slide:
        assert slide.contents.colours == ("#ff00ff",)
        np.testing.assert_array_equal(whole(slide)[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize(
    ("labels", "is_rgb"),
    [
        (("CD8", "PanCK", "DAPI"), False),
        (("Red", "Green", "Blue"), True),
        (("Channel 0", "Channel 1", "Channel 2"), True),
        (("", "", ""), True),
    ],
)
def test_three_channels_that_are_coloured_red_green_and_blue(tmp_path, labels, is_rgb):
    path = tmp_path / "a.zarr"
    colours = ("FF0000", "00FF00", "0000FF")
    omero = {"channels": [{"label": n, "color": c} for n, c in zip(labels, colours, strict=True)]}
    write_zarr(path, PIXELS, version="0.4", omero=omero)
    with open_slide(path) as slide:
        assert slide.is_rgb is is_rgb
        assert slide.channels == (("R", "G", "B") if is_rgb else labels)
        assert slide.background == (255.0 if is_rgb else 0.0,) * 3


def test_an_orientation_tag_is_ignored_and_that_is_said(tmp_path):
    """As Bio-Formats does. OpenSlide turns every tile, not the image; Pillow turns the image."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", metadata=None,
                     extratags=[(274, "H", 1, 6, True)])  # fmt: skip
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert any("orientation tag (6) is ignored" in w for w in slide.warnings)


def white_is_zero(bits):
    def write(path):
        grey = texture(H, W, 1, np.uint16)[..., 0] >> (16 - bits)
        options = {"bitspersample": bits} if bits == 12 else {"tile": (64, 64)}
        grey = grey.astype(np.uint8) if bits == 8 else grey
        tifffile.imwrite(path, grey, photometric="miniswhite", metadata=None, **options)

    return write


def turned(path):
    tags = [(274, "H", 1, 6, True)]
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", metadata=None, extratags=tags)


def planar_jpeg(path):
    tifffile.imwrite(path, np.moveaxis(PIXELS, -1, 0), tile=(64, 64), compression="jpeg", photometric="rgb",
                     planarconfig="separate", metadata={"axes": "SYX"})  # fmt: skip
    set_short(path, 262, 6)


def own_33003(path):
    jpeg2000(path, (H, W), j2k(PIXELS), 33003, metadata={"axes": "YXS"})


@needs_bioformats
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tif", white_is_zero(8)), ("a.tif", white_is_zero(12)), ("a.tif", white_is_zero(16)), ("a.tif", turned),
        ("a.ome.tif", planar_jpeg), ("a.ome.tif", own_33003),
    ],
    ids=["white is zero 8", "white is zero 12", "white is zero 16", "orientation", "planar JPEG", "OME 33003"],
)  # fmt: skip
def test_pixels_as_bio_formats(tmp_path, name, write):
    path, out = tmp_path / name, tmp_path / "out.ome.tif"
    write(path)
    bioformats("ImageConverter", "-series", 0, path, out)
    wanted = tifffile.imread(out)
    wanted = np.moveaxis(wanted, 0, -1) if wanted.ndim == 3 and wanted.shape[0] == 3 else wanted
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), wanted.reshape(H, W, -1))


# ---- several images


def test_regions_of_an_scn(tmp_path):
    path = tmp_path / "a.scn"
    scn(path, ((128, 64, 320, 400), (448, 560, 128, 192)))
    glass = by_openslide(path)[..., :3]
    with open_slide(path) as slide:
        assert slide.shape == (320, 400)
        assert difference(whole(slide), glass[128:448, 64:464]) <= 1
        assert slide.mpp == (0.5, 0.5)
        assert any("2 images" in w and "1 (region 1, 192 x 128 px)" in w for w in slide.warnings)
        assert slide.associated == ("macro",)
        first = slide.fingerprint
    with open_slide(path, image=1) as slide:
        assert difference(whole(slide), glass[448:576, 560:752]) <= 1
        assert slide.warnings == ()
        assert slide.fingerprint != first
    with open_slide(path, image=0) as slide:
        assert slide.fingerprint == first
        assert [i.name for i in slide.images] == ["region 0", "region 1"]
    for wrong in (2, -1):
        with pytest.raises(SlideOpenError, match=rf"no image {wrong}; it has 0 to 1"):
            open_slide(path, image=wrong)


def test_scenes_of_an_ome_tiff_and_a_macro_image_larger_than_the_scan(tmp_path):
    path = tmp_path / "a.ome.tif"
    scenes = [texture(400, 500, seed=9), PIXELS, texture(H, W, seed=1)]
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, pixels in zip(("Macro", "scene 1", "scene 2"), scenes, strict=True):
            tif.write(pixels, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", "Name": name})
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert any("2 images; image 0 (scene 1, 256 x 192 px) is open. Others: 1 (scene 2" in w for w in slide.warnings)
        facts = describe(slide)
        assert [i["name"] for i in facts["images"]] == ["scene 1", "scene 2"]
        json.dumps(facts)
    with open_slide(path, image=1) as slide:
        np.testing.assert_array_equal(whole(slide), scenes[2])


def test_images_of_a_bioformats2raw_zarr(tmp_path):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    for k, side in enumerate((64, 128)):
        write_zarr(path / str(k), texture(side, side, seed=k), version="0.4")
    with open_slide(path) as slide:
        assert slide.shape == (128, 128)
        assert any("2 images; image 1" in w for w in slide.warnings)
    with open_slide(path, image=0) as slide:
        np.testing.assert_array_equal(whole(slide), texture(64, 64, seed=0))


def test_one_image_needs_no_number(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    write_svs(tmp_path / "a.svs", PIXELS)
    for name in ("a.png", "a.svs"):
        with open_slide(tmp_path / name, image=0) as slide:
            assert slide.images == ()
        with pytest.raises(SlideOpenError, match="no image 1"):
            open_slide(tmp_path / name, image=1)


@pytest.mark.parametrize("name", ["a.vsi", "a.ndpis", "a.companion.ome", "a.isyntax", "a.kfb"])
def test_files_without_pixels_and_unknown_formats_are_refused_with_what_to_do(tmp_path, name):
    path = tmp_path / name
    tifffile.imwrite(path, PIXELS, photometric="rgb", metadata=None)  # a .vsi is a TIFF with a thumbnail
    with pytest.raises(SlideOpenError, match="Export it as OME-TIFF"):
        open_slide(path)


def test_the_focal_plane_in_focus_of_an_ndpi(tmp_path):
    path = tmp_path / "a.ndpi"
    planes = [texture(H, W, seed=k) for k in range(3)]
    ndpi(path, [(planes[0], -2000), (planes[1], 0), (planes[2], 2000)])
    with open_slide(path) as slide:
        assert slide.contents.format == "Hamamatsu NDPI"
        assert difference(whole(slide), by_openslide(path)[..., :3]) <= 1
        assert difference(whole(slide), planes[1]) < 60
        assert slide.warnings == ("it has 3 focal planes; number 1 is open",)
        assert slide.mpp == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("overlap", [0, 8])
def test_ventana_under_another_name_is_stitched_by_openslide(tmp_path, overlap):
    path = tmp_path / "a.tif"
    ventana(path, overlap)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), by_openslide(path)[..., :3])
        assert slide.shape == (128, 3 * 64 - 2 * overlap)
        assert slide.mpp == (0.2325, 0.2325)


# ---- the scanned area


def test_mrxs_is_cropped_to_the_scanned_area_as_qupath_does(tmp_path):
    path = tmp_path / "a.mrxs"
    canvas = mrxs(path, [(r, c) for r in (2, 3) for c in (1, 2, 3)])
    with openslide.OpenSlide(str(path)) as other:
        area = tuple(int(other.properties[f"openslide.bounds-{k}"]) for k in ("y", "x", "height", "width"))
    assert area == (128, 64, 128, 192)
    with open_slide(path) as slide:
        assert slide.shape == (128, 192)
        assert difference(whole(slide), canvas[128:256, 64:256]) <= 1
        assert slide.bounds == Box(0, 0, 128, 192)
        assert slide.canvas == Box(-128, -64, *canvas.shape[:2])
        half = by_openslide(path, 1)[64:128, 32:128, :3]
        assert difference(slide.levels[1].compute(), half) <= 1
        assert (slide.read((-5, -5, 5, 5)) == 255).all()
    with open_slide(path, crop=False) as slide:
        assert difference(whole(slide), canvas) <= 1
        assert slide.bounds == Box(*area)
        assert slide.canvas == Box(0, 0, *canvas.shape[:2])
    plain = tmp_path / "a.tif"
    tifffile.imwrite(plain, PIXELS, photometric="rgb")
    with open_slide(plain) as slide:
        assert slide.bounds == slide.canvas == Box(0, 0, H, W)


# ---- tiles that are left out


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
@pytest.mark.parametrize("kind", ["tif", "svs"])
def test_tiles_left_out_are_white_or_in_an_svs_filled_from_the_finer_level_as_in_openslide(tmp_path, kind, compression):
    path = tmp_path / f"a.{kind}"
    text = APERIO.format(w=W, h=H, t=64, mpp=0.25) if kind == "svs" else None
    options = {"tile": (64, 64), "compression": compression, "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tif:
        tif.write(PIXELS, description=text, **options)
        if kind == "svs":
            tif.write(PIXELS[::16, ::16], photometric="rgb", metadata=None, rowsperstrip=16)
        tif.write(mean2(PIXELS), description=text, subfiletype=0 if kind == "svs" else 1, **options)
    leave_out_tiles(path, [0, 1, 4, 5])
    leave_out_tiles(path, [0, 1], page=2 if kind == "svs" else 1)  # tile 1 is there at level 0
    with open_slide(path) as slide:
        for level in range(2):
            other = by_openslide(path, level)
            wanted = np.where(other[..., 3:] == 0, 255, other[..., :3])
            assert difference(slide.levels[level].compute(), wanted) <= 1
        assert (slide.read((0, 0, 64, 128)) == 255).all()
        assert (slide.bad_tiles, slide.metadata["tiles_left_out"]) == (0, 6)


def test_tiles_left_out_of_fluorescence_and_of_strips(tmp_path):
    write_ome(tmp_path / "a.ome.tif", texture(H, W, 2, np.uint16), levels=1, rgb=False)
    leave_out_tiles(tmp_path / "a.ome.tif", [0])
    with open_slide(tmp_path / "a.ome.tif") as slide:
        got = whole(slide)
        assert not got[:64, :64, 0].any()
        np.testing.assert_array_equal(got[..., 1], texture(H, W, 2, np.uint16)[..., 1])
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", metadata=None, rowsperstrip=32)
    leave_out_tiles(tmp_path / "a.tif", [1])
    with open_slide(tmp_path / "a.tif") as slide:
        got = whole(slide)
        assert (got[32:64] == 255).all()
        np.testing.assert_array_equal(got[64:], PIXELS[64:])


def test_the_colours_of_jpeg_do_not_depend_on_the_first_tile(tmp_path):
    """Photometric RGB with JFIF markers (YCbCr inside): tifffile looks for the marker in the first tile only."""
    path = tmp_path / "a.tif"
    coded = []
    for y in range(0, H, 64):
        for x in range(0, W, 64):
            buffer = io.BytesIO()
            Image.fromarray(PIXELS[y : y + 64, x : x + 64]).save(buffer, "JPEG", quality=95)
            coded.append(buffer.getvalue())
    tifffile.imwrite(path, iter(coded), shape=PIXELS.shape, dtype=np.uint8, tile=(64, 64), compression="jpeg",
                     photometric="rgb", metadata=None)  # fmt: skip
    with open_slide(path) as slide:
        before = whole(slide)
    first = np.asarray(Image.open(io.BytesIO(coded[0])))
    assert difference(before[:64, :64], first) <= 1
    leave_out_tiles(path, [0])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide)[64:], before[64:])
