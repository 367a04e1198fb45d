"""What `napari-sparseseg info` says about a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_sparseseg.geometry import Box

if TYPE_CHECKING:
    from napari_sparseseg.slides.slide import Slide


def describe(slide: Slide) -> dict[str, Any]:
    """Facts about a slide that JSON can hold, and what is wrong with it.

    One tile in the middle of every stored level is decoded, so a file whose header is sound and whose pixels are not is
    told apart.

    Raises
    ------
    SlideError
        Where no pixel can be read at all.
    """
    contents, pyramid = slide.contents, slide.pyramid
    levels: list[dict[str, Any]] = []
    for level, down, scale in zip(pyramid.levels, slide.downsamples, pyramid.scales, strict=True):
        h, w, _ = level.shape
        if not level.added:
            pyramid.read(len(levels), Box(h // 2, w // 2, 1, 1))
        levels.append(
            {
                "width": w,
                "height": h,
                "downsample": round(down, 6),
                "downsample_yx": [round(v, 6) for v in scale],
                "tile": [level.tile[1], level.tile[0]],
                "stored": not level.added,
            }
        )
    problems = list(slide.warnings)
    if slide.mpp is None:
        problems.append("the file does not say its micrometres per pixel (mpp)")
    return {
        "path": slide.path,
        "format": contents.format,
        "backend": contents.backend,
        "bytes": contents.bytes,
        "width": slide.shape[1],
        "height": slide.shape[0],
        "dtype": str(slide.dtype),
        "channels": list(slide.channels),
        "rgb": slide.is_rgb,
        "mpp_yx": None if slide.mpp is None else list(slide.mpp),
        "mpp_source": slide.mpp_source or "not found",
        "levels": levels,
        "background": list(slide.background),
        "associated": list(slide.associated),
        "metadata": slide.metadata,
        "fingerprint": slide.fingerprint,
        "bad_tiles": slide.bad_tiles,
        "problems": problems,
    }
