"""Lengths and magnifications against numbers worked out by hand."""

from __future__ import annotations

import pytest

from napari_sparseseg.gui.view.scale import (
    length_text,
    magnification,
    magnification_text,
    point_of,
    scale_bar,
    zoom_of,
)


@pytest.mark.parametrize(
    ("zoom", "mpp", "pixels", "text"),
    [
        # 150 screen pixels are 74.85 um at most: 50 um, which are 50 / 0.499 pixels
        (1.0, 0.499, 100.2004, "50 µm"),
        (0.1, 0.499, 100.2004, "500 µm"),
        # 7.485 mm at most
        (0.01, 0.499, 100.2004, "5 mm"),
        # 40x, as large as the screen shows it: 37.5 um at most
        (1.0, 0.25, 80.0, "20 µm"),
        # 0.25 / 16 um per screen pixel: 2.34 um at most
        (16.0, 0.25, 128.0, "2 µm"),
        # 0.0025 um per screen pixel: 0.375 um at most
        (100.0, 0.25, 80.0, "200 nm"),
        # exactly as long as allowed
        (0.75, 0.5, 150.0, "100 µm"),
        (0.5, None, 100.0, "200 px"),
        (0.001, None, 100.0, "100000 px"),
    ],
)
def test_a_scale_bar_is_as_long_as_it_says(zoom, mpp, pixels, text):
    bar = scale_bar(zoom, mpp)
    assert bar.pixels == pytest.approx(pixels, rel=1e-5)
    assert bar.text == text


def test_a_scale_bar_is_never_short():
    for k in range(1, 3000, 7):
        assert 59.9 <= scale_bar(k / 100, 0.2527).pixels <= 150.001


@pytest.mark.parametrize(
    ("mpp", "zoom", "objective", "text"),
    [
        (0.25, 1.0, 40.0, "40×"),
        (0.499, 1.0, 20.0401, "20×"),
        (0.5, 0.03, 0.6, "0.6×"),
        (0.5, 0.0042553, 0.085106, "0.085×"),
        (0.25, 4.0, 160.0, "160×"),
    ],
)
def test_magnification_is_ten_by_micrometres_per_screen_pixel(mpp, zoom, objective, text):
    assert magnification(mpp, zoom) == pytest.approx(objective, rel=1e-4)
    assert zoom_of(mpp, magnification(mpp, zoom)) == pytest.approx(zoom)
    assert magnification_text(magnification(mpp, zoom)) == text


@pytest.mark.parametrize(
    ("um", "text"),
    [(0.25, "250 nm"), (36.59, "36.6 µm"), (999.4, "999 µm"), (999.6, "1 mm"), (1234.0, "1.23 mm"), (4e4, "40 mm")],
)
def test_lengths_have_three_figures(um, text):
    assert length_text(um) == text


@pytest.mark.parametrize(
    ("typed", "point"),
    [
        ("1200, 30", (30.0, 1200.0)),
        ("x: 1200.5  y: 30", (30.0, 1200.5)),
        ("-3;4", (4.0, -3.0)),
        ("12", None),
        ("1, 2, 3", None),
        ("", None),
    ],
)
def test_a_point_is_read_as_typed(typed, point):
    assert point_of(typed) == point
