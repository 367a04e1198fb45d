"""What changes under us: the clock, and the file of a slide that is open."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Session
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import PredictionError, SlideChangedError
from napari_sparseseg.geometry import Frame
from napari_sparseseg.prediction.slide import run_prediction
from napari_sparseseg.prediction.slide.shards import ShardTask, TilePlan, run_shard
from napari_sparseseg.prediction.slide.workspace import Journal
from napari_sparseseg.slides import open_slide
from napari_sparseseg.slides.cache import TILES
from tests.helpers.data import two_textures, write_slide
from tests.helpers.processes import child
from tests.helpers.slide_files import overwrite, write_raw, write_zarr
from tests.helpers.smooth_model import SmoothModel, level0, write_tall_slide
from tests.helpers.waiting import wait_until

CONFIG = TrainConfig(architecture="scratch", patch_px=64, batch_size=1, device="cpu")


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
        from napari_sparseseg.session.recovery import recoverable, recovery_folder
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
            print(session.status.message or "whole", *sorted(len(e.annotations.strokes) for e in session.entries))
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
        assert sorted(len(e.annotations.strokes) for e in session.entries) == [2, 3]


@pytest.fixture
def images():
    return two_textures(512, 0), np.ascontiguousarray(two_textures(512, 1)[::-1])


@pytest.fixture
def path(images, tmp_path):
    return write_raw(tmp_path / "a.tif", images[0])


@pytest.fixture
def other(images, tmp_path):
    """As many bytes of another slide."""
    return write_raw(tmp_path / "other.tif", images[1]).read_bytes()


def scribble(session):
    session.annotations.paint([(20, 20), (60, 200)], 5, 1)
    session.annotations.paint([(20, 300), (60, 480)], 5, 2)


@pytest.mark.fault("slide overwritten while open")
@pytest.mark.parametrize("whole", [True, False], ids=["with another slide", "with noise"])
def test_a_slide_overwritten_in_place_with_as_many_bytes(tmp_path, whole):
    """No new tile is read; strokes are kept; opened anew it is another slide."""
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
        overwrite(path, content)
        for _ in range(2):
            with pytest.raises(SlideChangedError, match=rf"{path} was overwritten or replaced.*open it again"):
                slide.read((0, 0, 512, 512))
        np.testing.assert_array_equal(slide.read((0, 0, 512, 256)), old[:, :256])
        assert slide.bad_tiles == 0
        session.annotations.paint([(120, 20), (160, 200)], 5, 2)
        assert session.annotations.saved
        session.save(tmp_path / "p")
    with Session.load(tmp_path / "p.sparseseg") as again:
        assert "left out" in again.status.message
        assert not again.entries
    path.write_bytes(write_raw(tmp_path / "first.tif", old).read_bytes())
    with Session.load(tmp_path / "p.sparseseg") as again:
        assert again.status.message == ""
        assert len(again.annotations.strokes) == 2


@pytest.mark.fault("slide overwritten while open")
def test_a_stroke_on_an_overwritten_slide_is_kept_and_the_user_is_told(path, other, tmp_path):
    """Before any training, off the thread that draws; the strokes come back with the old slide."""
    old = path.read_bytes()
    with Session(["a", "b"], autosave=True, config=CONFIG) as session:
        session.open(path)
        scribble(session)
        wait_until(lambda: any(t.name == "sparseseg-engine" for t in threading.enumerate()))
        session.save(tmp_path / "p")
        overwrite(path, other)
        session.annotations.paint([(120, 20), (160, 200)], 5, 2)
        wait_until(lambda: session.status.state == "failed")
        assert "open it again" in session.status.message
        assert session.annotations.saved
        with pytest.raises(SlideChangedError):
            session.open(path)  # it is open, and is not what lies there
        with pytest.raises(SlideChangedError):
            session.train(steps=1, wait=True)
        session.remove()
        assert session.open(path).fingerprint != ""
        assert session.annotations.strokes == ()
        scribble(session)
        session.train(steps=1, wait=True)
        session.remove()
        path.write_bytes(old)
        session.open(path)
        assert len(session.annotations.strokes) == 3


@pytest.mark.fault("slide overwritten while open")
def test_a_run_ends_where_its_slide_is_overwritten_and_the_model_is_kept(path, other):
    with TILES.limited(0), Session(["a", "b"], config=CONFIG) as session:
        session.open(path)
        scribble(session)
        session.train(steps=1_000_000)
        wait_until(lambda: session.status.step >= 2)
        overwrite(path, other)
        wait_until(lambda: session.status.state == "failed")
        assert "open it again" in session.status.message
        assert session.model is not None
        assert len(session.annotations.strokes) == 2


@pytest.mark.fault("slide overwritten while open")
def test_another_slide_does_not_keep_the_rest_from_learning(path, other, tmp_path):
    """One that is only predicted teaches nothing: training goes on; what is asked of the slide itself is refused."""
    with Session(["a", "b"], config=CONFIG) as session:
        session.open(path, role="predict")
        session.open(write_slide(tmp_path / "b.tif", two_textures(512)))
        scribble(session)
        overwrite(path, other)
        session.train(steps=1, wait=True)
        batch = session.predict_project(tmp_path / "out")
        assert [r.output.name for r in batch.results] == ["b.ome.zarr"]
        assert "open it again" in dict(batch.failed)[str(path)]
        assert not (tmp_path / "out" / "a.ome.zarr").exists()


@pytest.fixture
def tall(tmp_path):
    return write_tall_slide(tmp_path / "tall.tif")


@pytest.fixture
def upside_down(tall, tmp_path):
    """As many bytes, other pixels everywhere."""
    pixels = np.ascontiguousarray(tifffile.imread(tall)[::-1])
    path = tmp_path / "turned.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3)
    return path.read_bytes()


@pytest.mark.fault("slide overwritten while open")
@pytest.mark.parametrize("room", [0, 1 << 26], ids=["read again", "all in memory"])
@pytest.mark.parametrize("back", [False, True], ids=["new slide stays", "old slide returns"])
def test_a_prediction_is_of_one_slide_whatever_happens_to_the_file(tall, upside_down, tmp_path, back, room):
    """Overwritten between its shards: the run ends; one that goes on takes over what is done only for the old slide."""
    old = tall.read_bytes()
    out, journal = tmp_path / "a.ome.zarr", tmp_path / "a.ome.zarr.partial" / "journal.jsonl"
    with TILES.limited(room), open_slide(tall) as slide:
        slide.read((0, 0, *slide.shape))

        def replace_file(progress):
            if Journal(journal).done and tall.read_bytes() == old:
                overwrite(tall, upside_down)

        with pytest.raises(SlideChangedError, match="open it again"):
            run_prediction(slide, SmoothModel(delay=0.08), out, tile=256, progress=replace_file)
        with pytest.raises(SlideChangedError):
            run_prediction(slide, SmoothModel(), tmp_path / "b.ome.zarr", tile=256)
    done = Journal(journal).done
    assert 1 <= len(done) < 4 if room == 0 else len(done) == 4
    assert not out.exists()
    if back:
        overwrite(tall, old)
    with open_slide(tall) as slide:
        result = run_prediction(slide, SmoothModel(), out, tile=256, resume=True)
        assert result.shards_resumed == (len(done) if back else 0)
    (tmp_path / "alone").mkdir()
    copy = shutil.copy(tall, tmp_path / "alone" / "tall.tif")
    with open_slide(copy) as slide:
        run_prediction(slide, SmoothModel(), tmp_path / "alone.ome.zarr", tile=256)
    np.testing.assert_array_equal(level0(out), level0(tmp_path / "alone.ome.zarr"))


def test_a_worker_of_a_cluster_predicts_no_other_slide(path, tmp_path):
    task = ShardTask(
        slide=str(path), fingerprint="that of another", mpp=None, model="", store="", tissue=None,
        plan=TilePlan(Frame(), Frame(), 512),
    )  # fmt: skip
    with pytest.raises(PredictionError, match="open it again"):
        run_shard(task, 0)


@pytest.mark.parametrize("how", ["touched", "copied over by itself", "away for a while"])
def test_a_file_with_the_same_content_is_the_same_slide(path, images, how):
    content = path.read_bytes()
    with Session(["a", "b"], config=CONFIG) as session, TILES.limited(0):
        slide = session.open(path)
        scribble(session)
        if how == "touched":
            os.utime(path, (1e9, 1e9))
        elif how == "copied over by itself":
            # in one step: of half a file it is true to say that it is another one, and the engine may look just then
            path.with_name("copy.tif").write_bytes(content)
            path.with_name("copy.tif").replace(path)
        else:
            path.rename(path.with_name("away.tif"))
            session.annotations.paint([(120, 20), (160, 200)], 5, 2)
            path.with_name("away.tif").rename(path)
        np.testing.assert_array_equal(slide.read((0, 0, 512, 512)), images[0])
        session.train(steps=1, wait=True)
        assert session.status.state == "idle"


@pytest.mark.fault("slide overwritten while open")
def test_a_folder_written_anew_while_it_is_open(images, tmp_path):
    folder = tmp_path / "a.zarr"
    write_zarr(folder, images[0])
    with open_slide(folder) as slide, TILES.limited(0):
        assert slide.fingerprint
        np.testing.assert_array_equal(slide.read((0, 0, 512, 512)), images[0])
        write_zarr(folder, images[1])
        with pytest.raises(SlideChangedError, match="open it again"):
            slide.read((0, 0, 512, 512))


@pytest.mark.fault("slide overwritten while open")
def test_readers_in_many_threads_never_see_the_new_slide(path, other, images):
    """While it is being overwritten, again and again."""
    stop, wrong, refused, reads = threading.Event(), [], [], []

    def look(slide):
        while not stop.is_set():
            try:
                found = slide.read((0, 0, 512, 512))
                reads.append(1)
            except SlideChangedError as error:
                refused.append(str(error))
                return
            if not np.array_equal(found, images[0]):
                wrong.append(found)

    with TILES.limited(0), open_slide(path) as slide:
        assert slide.fingerprint
        readers = [threading.Thread(target=look, args=(slide,)) for _ in range(4)]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(reads) > 20)
        with path.open("r+b") as file:
            for start in range(0, len(other), 65536):
                file.write(other[start : start + 65536])
                file.flush()
        try:
            wait_until(lambda: len(refused) == len(readers), 30)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    assert not wrong
