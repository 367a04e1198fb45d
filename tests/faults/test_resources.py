"""Little room, little memory, extreme slides: what fails says so and leaves the rest working."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tifffile

from napari_sparseseg import Annotations, Session
from napari_sparseseg.config import TrainConfig
from napari_sparseseg.errors import SparseSegError, TrainingError
from napari_sparseseg.slides import ArraySlide
from napari_sparseseg.slides.cache import TILES
from tests.helpers.classes import add_class
from tests.helpers.data import two_textures, write_slide
from tests.helpers.processes import child
from tests.helpers.smooth_model import write_tall_slide

CONFIG = TrainConfig(patch_px=64, batch_size=2, device="cpu")


@pytest.mark.fault("disk full")
def test_full_disk_while_painting_saving_and_exporting(tmp_path):
    """Each is told, what was there before is whole, and all goes on when there is room again."""
    write_slide(tmp_path / "a.tif", two_textures(256))
    lines = child(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from napari_sparseseg import Session
        from napari_sparseseg.errors import AnnotationError, ProjectError
        from tests.helpers.limits import limit_file_size
        folder = Path(sys.argv[1])
        with Session(["a", "b"]) as session:
            session.open(folder / "a.tif")
            a = session.annotations
            a.paint([(5, 5), (50, 60)], 3, 1)
            session.save(folder / "p")
            a.to_geojson(folder / "a.geojson")
            before = [(folder / n).read_bytes() for n in ("a.geojson", "p.sparseseg/project.json")]
            limit_file_size(100)
            noise = np.random.default_rng(0).random((200, 200)) < 0.5
            def try_(what, kind):
                try:
                    what()
                except kind as error:
                    print(type(error).__name__, error)
            def draw():
                a.begin_stroke(2)
                a.paint_mask(0, 20, 20, noise)
                a.commit_stroke()
            try_(draw, AnnotationError)
            print(a.saved, a.counts()[2] > 0)
            try_(lambda: a.to_geojson(folder / "a.geojson"), AnnotationError)
            session.slide.mpp = 0.3
            try_(lambda: session.save(folder / "p"), ProjectError)
            try_(lambda: session.save(folder / "q"), (ProjectError, AnnotationError))
            print(before == [(folder / n).read_bytes() for n in ("a.geojson", "p.sparseseg/project.json")])
            limit_file_size(1 << 30)
            a.paint([(5, 5), (9, 9)], 3, 1)
            session.save(folder / "p")
            print(a.saved, a.counts()[2])
        """,
        tmp_path,
    )
    assert [line.split()[0] for line in lines] == [
        "AnnotationError", "False", "AnnotationError", "ProjectError", "ProjectError", "True", "True",
    ]  # fmt: skip
    assert "in memory only" in lines[0]
    assert lines[1] == "False True"
    with Session.load(tmp_path / "p.sparseseg") as session:
        assert session.annotations.counts()[2] == int(lines[6].split()[1])
        assert session.slide.mpp == (0.3, 0.3)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".part", ".partial"))]


@pytest.mark.fault("disk full")
def test_full_disk_while_predicting(tmp_path):
    write_tall_slide(tmp_path / "tall.tif")
    lines = child(
        """
        import sys
        from pathlib import Path
        from napari_sparseseg.errors import PredictionError
        from napari_sparseseg.prediction.slide import run_prediction
        from napari_sparseseg.slides import open_slide
        from tests.helpers.limits import limit_file_size
        from tests.helpers.smooth_model import SmoothModel
        folder = Path(sys.argv[1])
        with open_slide(folder / "tall.tif") as slide:
            limit_file_size(5000)
            try:
                run_prediction(slide, SmoothModel(), folder / "a.ome.tif", tile=256)
            except (PredictionError, OSError) as error:
                print(type(error).__name__, error)
            print((folder / "a.ome.tif").exists())
            limit_file_size(1 << 30)
            run_prediction(slide, SmoothModel(), folder / "a.ome.tif", tile=256, resume=True)
            run_prediction(slide, SmoothModel(), folder / "b.ome.tif", tile=256)
        """,
        tmp_path,
    )
    assert len(lines) == 2
    assert lines[1] == "False"
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif"), tifffile.imread(tmp_path / "b.ome.tif"))


@pytest.mark.fault("disk full")
def test_full_disk_when_training_ends(tmp_path):
    """The run says that its model could not be saved; the model is there and can be saved when there is room."""
    write_slide(tmp_path / "a.tif", two_textures(256))
    lines = child(
        """
        import os, sys
        from pathlib import Path
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from napari_sparseseg import Session
        from napari_sparseseg.config import TrainConfig
        from napari_sparseseg.errors import TrainingError
        from tests.helpers.limits import limit_file_size
        folder = Path(sys.argv[1])
        with Session(["a", "b"], config=TrainConfig(patch_px=64, batch_size=2, device="cpu")) as session:
            session.open(folder / "a.tif")
            session.annotations.paint([(40, 20), (200, 90)], 6, 1)
            session.annotations.paint([(40, 160), (200, 240)], 6, 2)
            session.save(folder / "p")
            limit_file_size(50_000)
            try:
                session.train(steps=1, wait=True)
            except TrainingError as error:
                print(error)
            print(session.status.state, session.checkpoint, session.predict((0, 0, 64, 64))[0].shape)
            limit_file_size(1 << 30)
            session.save(folder / "p")
            print(session.checkpoint is not None)
        """,
        tmp_path,
    )
    assert "could not be saved" in lines[0]
    assert lines[1:] == ["failed None (64, 64)", "True"]


BOUND = 1 << 30
HUGE = """
    import sys
    from pathlib import Path
    import numpy as np
    from napari_sparseseg import Annotations
    from napari_sparseseg.geometry import Box
    from napari_sparseseg.prediction.tiles import predict_region
    from napari_sparseseg.slides import open_slide
    from tests.helpers.limits import limit_memory
    from tests.helpers.smooth_model import SmoothModel
    limit_memory(int(sys.argv[2]))
    with open_slide(sys.argv[1]) as slide:
        print(*slide.shape, len(slide.levels))
        a = Annotations(slide.shape, ["a", "b"])
        a.paint([(10, 10), (299_000, 150_000), (20, 299_990)], 500, 1)
        a.fill_polygon([(100, 100), (100, 29_000), (29_000, 20_000)], 2)
        a.erase([(0, 299_999), (299_999, 0)], 50)
        a.save(sys.argv[1] + ".sparseseg")
        again = Annotations.load(sys.argv[1] + ".sparseseg")
        print(again.counts() == a.counts(), min(a.counts().values()) > 10**8)
        frame = slide.frame(None)
        labels, _ = predict_region(SmoothModel(), slide, Box(150_000, 150_000, 1500, 1500), frame)
        print(*labels.shape, *np.unique(labels))
        print(*slide.thumbnail()[0].shape[:2])
"""


def huge_zarr(path):
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets, side = [], 300_000
    for k in range(10):
        group.create_array(str(k), shape=(3, side, side), chunks=(1, 512, 512), dtype="uint8", fill_value=240)
        scale = {"type": "scale", "scale": [1.0, 0.25 * 2**k, 0.25 * 2**k]}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
        side //= 2
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"version": "0.5", "axes": axes, "datasets": datasets}]}


def huge_tiff(path):
    """Almost all tiles are absent; the one that is there is in the corner."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        side = 300_000
        for k in range(9):
            tiles = ((side + 1023) // 1024) ** 2
            first = np.full((1024, 1024, 3), 200, np.uint8)
            writer.write(
                (first if n == 0 else None for n in range(tiles)), shape=(side, side, 3), dtype=np.uint8,
                tile=(1024, 1024), photometric="rgb", compression="zlib", subfiletype=int(k > 0), metadata=None,
            )  # fmt: skip
            side //= 2


@pytest.mark.parametrize("make", [huge_zarr, huge_tiff])
def test_a_slide_of_300_000_px_takes_no_slide_sized_memory(tmp_path, make):
    path = tmp_path / ("huge.zarr" if make is huge_zarr else "huge.tif")
    make(path)
    lines = child(HUGE, path, BOUND)
    assert lines[0].startswith("300000 300000 ")
    assert lines[1] == "True True"
    assert lines[2].startswith("1500 1500 ")
    assert max(map(int, lines[3].split())) <= 2048


@pytest.fixture
def session():
    with Session(["a", "b"], config=CONFIG) as made:
        yield made


def add(session, image, **options):
    return session.add(ArraySlide(image, mpp=1.0, name="image", **options))


def test_one_labelled_pixel_of_each_class(session):
    add(session, two_textures(256))
    for label, x in ((1, 40), (2, 200)):
        session.annotations.begin_stroke(label)
        session.annotations.paint_mask(0, 100, x, np.ones((1, 1), bool))
        session.annotations.commit_stroke()
    assert session.annotations.counts() == {1: 1, 2: 1}
    session.train(steps=2, wait=True)
    labels, probabilities = session.predict((0, 0, 256, 256))
    assert np.isfinite(probabilities).all()
    assert (labels[100, 40], labels[100, 200]) == (1, 2)


def test_an_all_white_slide_trains_and_predicts(session, tmp_path):
    add(session, np.full((300, 300, 3), 255, np.uint8))
    session.annotations.paint([(50, 50), (60, 90)], 5, 1)
    session.annotations.paint([(200, 50), (210, 90)], 5, 2)
    session.train(steps=2, wait=True)
    _, probabilities = session.predict((0, 0, 300, 300))
    assert np.isfinite(probabilities).all()
    result = session.predict_slide(tmp_path / "white.ome.tif", tissue_only=True)
    assert result.tissue_share == 1  # nothing to tell tissue from glass by: nothing is left out
    assert set(np.unique(tifffile.imread(result.output))) <= {1, 2}


@pytest.mark.slow
def test_255_classes(tmp_path):
    """Each has a colour of its own, and is found where it was drawn: also the last, whose id is the largest a byte."""
    side, steps = 24, np.linspace(20, 235, 7).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    colours = np.random.default_rng(1).permutation(colours)[:256].reshape(16, 16, 3)
    with Session([f"class {k}" for k in range(1, 256)], config=CONFIG) as session:
        add(session, np.kron(colours, np.ones((side, side, 1), np.uint8)))
        for k in range(1, 256):
            y, x = divmod(k - 1, 16)
            session.annotations.paint([((y + 0.5) * side, (x + 0.5) * side)], 7, k)
        assert sorted(k for k, n in session.annotations.counts().items() if n) == list(range(1, 256))
        session.train(steps=1, wait=True)
        labels, probabilities = session.predict((0, 0, 16 * side, 16 * side))
        centres = labels[side // 2 :: side, side // 2 :: side].ravel()[:255]
        assert (centres == np.arange(1, 256)).mean() > 0.9
        assert probabilities.shape == (255, 16 * side, 16 * side)
        np.testing.assert_array_equal(probabilities.argmax(0) + 1, labels)
        with pytest.raises(SparseSegError):
            add_class(session.annotations, "one too many")
        session.save_model(tmp_path / "m.safetensors")
        session.load_model(tmp_path / "m.safetensors")
        np.testing.assert_array_equal(session.predict((0, 0, 16 * side, 16 * side))[0], labels)


def test_not_a_number_in_a_float_slide(session, tmp_path):
    image = np.random.default_rng(0).random((256, 256, 2), np.float32)
    image[:, :128] += 2
    image[100:130] = np.nan
    image[5, 5] = np.inf
    add(session, image)
    session.annotations.paint([(40, 20), (220, 90)], 6, 1)
    session.annotations.paint([(40, 160), (220, 240)], 6, 2)
    session.train(steps=2, wait=True)
    labels, probabilities = session.predict((0, 0, 256, 256))
    assert np.isfinite(probabilities).all()
    assert set(np.unique(labels)) <= {1, 2}
    assert np.isfinite(session.status.loss)
    session.next_region()
    session.predict_slide(tmp_path / "a.ome.tif", tissue_only=True)


def test_no_tile_cache(tmp_path):
    path = write_slide(tmp_path / "a.tif", two_textures(512))
    before = TILES.max_bytes
    try:
        with Session() as session:
            expected = session.open(path).read((0, 0, 512, 512))
        TILES.max_bytes = 0
        with Session() as session:
            np.testing.assert_array_equal(session.open(path).read((0, 0, 512, 512)), expected)
            assert TILES.bytes == 0
    finally:
        TILES.max_bytes = before


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ten_thousand_strokes(tmp_path, count):
    rng = np.random.default_rng(0)
    annotations = Annotations((40_000, 40_000), ["a", "b"])
    for k in range(count):
        p = rng.uniform(0, 40_000, 2)
        annotations.paint([p, p + rng.uniform(-80, 80, 2)], 6, 1 + k % 2)
    annotations.save(tmp_path / "a.sparseseg")
    annotations.attach(tmp_path / "a.sparseseg")
    annotations.paint([(5, 5), (50, 50)], 5, 1)
    annotations.undo()
    annotations.close()
    again = Annotations.load(tmp_path / "a.sparseseg")
    assert len(again.strokes) == count
    assert again.counts() == annotations.counts()


@pytest.mark.fault("out of memory")
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_out_of_memory_ends_the_run_and_nothing_else(session, monkeypatch, kind):
    import torch

    add(session, two_textures(256))
    session.annotations.paint([(40, 20), (220, 90)], 6, 1)
    session.annotations.paint([(40, 160), (220, 240)], 6, 2)
    real = torch.nn.functional.conv2d

    def fail(*args, **kwargs):
        if kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.empty(1 << 60, dtype=torch.uint8)  # what the allocator of the processor says

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", fail)
        with pytest.raises((TrainingError, RuntimeError)):
            session.train(steps=1, wait=True)
        assert session.status.state == "failed"
        assert "not enough memory" in session.status.message
    assert torch.nn.functional.conv2d is real
    session.annotations.paint([(10, 10), (20, 20)], 5, 1)
    session.train(steps=1, wait=True)
    assert session.predict((0, 0, 64, 64))[0].shape == (64, 64)


@pytest.mark.slow
@pytest.mark.fault("out of memory")
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_out_of_address_space(tmp_path):
    """Training, predicting and the live view fail with a reason; strokes are kept; all goes on when there is room."""
    lines = child(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from napari_sparseseg import Session
        from napari_sparseseg.config import TrainConfig
        from napari_sparseseg.errors import TrainingError
        from napari_sparseseg.slides import ArraySlide
        from tests.helpers.data import two_textures
        from tests.helpers.limits import limit_memory
        config = TrainConfig(patch_px=64, batch_size=2, device="cpu")
        with Session(["a", "b"], config=config) as session:
            session.add(ArraySlide(np.tile(two_textures(256), (8, 8, 1)), mpp=1.0, name="image"))
            session.annotations.paint([(40, 20), (220, 90)], 6, 1)
            session.annotations.paint([(40, 1160), (220, 1240)], 6, 2)
            session.save(Path(sys.argv[1]) / "p")
            session.train(steps=1, wait=True)
            session.config = config.updated({"patch_px": 1024, "batch_size": 16})
            limit_memory(16 << 20)
            for what in (lambda: session.train(steps=1, wait=True), lambda: session.predict((0, 0, 2048, 2048))):
                try:
                    what()
                except (TrainingError, MemoryError, RuntimeError) as error:
                    print(str(error).replace(chr(10), " "))
            print(session.status.state, session.status.message)
            session.annotations.paint([(10, 10), (20, 20)], 5, 1)
            session.save(Path(sys.argv[1]) / "p")
            print(session.annotations.saved)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            session.config = config
            session.train(steps=1, wait=True)
            print(session.status.state, *session.predict((0, 0, 64, 64))[0].shape)
        """,
        tmp_path,
    )
    assert len(lines) == 5
    assert "llocate" in lines[0]
    assert "llocate" in lines[1]
    assert lines[2].startswith("failed there is not enough memory")
    assert lines[3:] == ["True", "idle 64 64"]
    (file,) = tmp_path.glob("p.sparseseg/annotations/*.sqlite")
    assert len(Annotations.load(file).strokes) == 3
