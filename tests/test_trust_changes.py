"""What changes under us: the clock, and the file of a slide that is open."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Session
from napari_sparseseg.errors import SlideError
from tests.conftest import two_textures, write_slide
from tests.test_trust_resources import child


@pytest.mark.fault("clock set back")
def test_a_clock_that_goes_back_while_somebody_draws(tmp_path):
    """Hours and years back, between strokes, while saving, and from one session to the next."""
    for k, name in enumerate("ab"):
        write_slide(tmp_path / f"{name}.tif", two_textures(256, k))
    lines = child(
        """
        import os, sys, time
        from pathlib import Path
        real = {name: getattr(time, name) for name in ("time", "time_ns", "localtime", "gmtime", "strftime")}
        offset = [0.0]
        time.time = lambda: real["time"]() + offset[0]
        time.time_ns = lambda: real["time_ns"]() + int(offset[0] * 1e9)
        time.localtime = lambda t=None: real["localtime"](time.time() if t is None else t)
        time.gmtime = lambda t=None: real["gmtime"](time.time() if t is None else t)
        time.strftime = lambda form, t=None: real["strftime"](form, time.localtime() if t is None else t)
        folder, year = Path(sys.argv[1]), 365 * 86400.0
        os.environ["NAPARI_SPARSESEG_HOME"] = str(folder / "home")
        from napari_sparseseg import Session
        from napari_sparseseg.recovery import recoverable, recovery_folder
        def back(seconds):
            offset[0] -= seconds
        strokes = 0
        fingerprint = None
        for turn in range(3):
            session = Session(["a", "b"], autosave=True)
            fingerprint = session.open(folder / "a.tif").fingerprint
            for k in range(4):
                session.annotations.paint([(20 + 9 * k, 10), (20 + 9 * k, 100 + 9 * turn)], 3, 1 + k % 2)
                back(3600.0)
                assert session.annotations.saved
            session.annotations.undo()
            back(year)
            session.close()
        found = recoverable(fingerprint)
        print(len(found), found == sorted(found, reverse=True))
        with Session.load(found[0], autosave=True) as session:  # the newest is what was drawn last
            print(len(session.annotations.strokes), session.annotations.counts()[1])
            back(year)
            session.save(folder / "p")
            back(86400.0)
            session.open(folder / "b.tif")
            session.annotations.paint([(9, 9), (90, 90)], 4, 2)
            for path in (folder / "p.sparseseg").rglob("*"):
                os.utime(path, (real["time"]() + year, real["time"]() + year))  # files of the future
            session.save(folder / "p")
        back(10 * year)
        with Session.load(folder / "p.sparseseg") as session:
            print(session.status.message or "whole", *sorted(len(e.annotations.strokes) for e in session.set.entries))
            session.annotations.paint([(200, 9), (200, 90)], 4, 1)
            print(session.annotations.saved)
        print(len(list(recovery_folder().iterdir())))
        """,
        tmp_path,
    )
    print(*lines, sep="\n")
    assert lines[0] == "3 True"
    assert lines[1].split()[0] == "3"
    assert lines[2:4] == ["whole 1 3", "True"]
    assert lines[4] == "2", "what was saved as a project is no longer unsaved work"
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert sorted(len(e.annotations.strokes) for e in session.set.entries) == [2, 3]


def write_raw(path, image):
    """All such files have the same size, tables and header, whatever is in them."""
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, resolution=(1e4, 1e4))
    return path


@pytest.mark.fault("slide overwritten while open")
@pytest.mark.parametrize("whole", [True, False], ids=["with another slide", "with noise"])
def test_a_slide_overwritten_in_place_with_as_many_bytes(tmp_path, whole):
    """Old or new tiles are read, or it is refused; strokes are kept; opened anew it is another slide."""
    old, new = two_textures(512, 0), np.ascontiguousarray(two_textures(512, 1)[::-1])
    path = write_raw(tmp_path / "a.tif", old)
    size = path.stat().st_size
    content = bytearray(write_raw(tmp_path / "other.tif", new).read_bytes())
    assert len(content) == size
    if not whole:
        content[:] = np.random.default_rng(0).bytes(size)
    with Session(["a", "b"]) as session:
        slide = session.open(path)
        session.annotations.paint([(20, 20), (60, 200)], 5, 1)
        session.save(tmp_path / "p")
        np.testing.assert_array_equal(slide.read((0, 0, 512, 256)), old[:, :256])
        with path.open("r+b") as file:
            file.write(content)
        try:
            found = slide.read((0, 0, 512, 512))
        except SlideError as error:
            assert str(path) in str(error)  # noqa: PT017 - a refusal is right too
        else:
            assert found.shape == (512, 512, 3)
            if whole:
                assert (np.equal(found, old).all(-1) | np.equal(found, new).all(-1)).all()
        session.annotations.paint([(120, 20), (160, 200)], 5, 2)
        assert session.annotations.saved
        session.save(tmp_path / "p")
    with Session.load(tmp_path / "p.sparseseg") as again:
        assert "left out" in again.status.message
        assert not again.set.entries
    path.write_bytes(write_raw(tmp_path / "first.tif", old).read_bytes())
    with Session.load(tmp_path / "p.sparseseg") as again:
        assert again.status.message == ""
        assert len(again.annotations.strokes) == 2
