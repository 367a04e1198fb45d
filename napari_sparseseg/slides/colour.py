"""Small colour conversions that every backend needs."""

from __future__ import annotations

from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
RGB = ("R", "G", "B")
RGB_COLOURS = ("#ff0000", "#00ff00", "#0000ff")
WHITE = (255.0, 255.0, 255.0)


def over(rgba: Pixels, background: tuple[float, ...]) -> Pixels:
    """uint8 (h, w, 4) with straight alpha laid over a background colour: uint8 (h, w, 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    under = np.asarray(background[:3], np.uint16)
    return ((rgba[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)


def hex_colour(red: int, green: int, blue: int) -> str:
    """``#rrggbb`` of three values 0..255."""
    return f"#{red & 255:02x}{green & 255:02x}{blue & 255:02x}"
