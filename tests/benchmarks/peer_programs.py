"""What runs inside each tool's own environment: fit on strokes, label fields, say what it took.

    PYTHON peer_programs.py TOOL VARIANT DATA.npz OUT.npz [--sides N ...]

DATA: ``train`` (n, h, w, 3) uint8, ``strokes`` (n, h, w) uint8 with 0 = unlabelled, ``test`` (m, h, w, 3), and, for
ours alone, ``classes`` and ``seed``. OUT: ``labels`` (m, h, w). It prints a line of JSON, then one per side. Only numpy
is imported before the tool, and nothing of ours but for ours and the forest.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import resource
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import numpy as np

VARIANTS = {
    "forest": ("default", "wide"),
    "convpaint": ("default", "pyramid"),
    "apoc": ("default", "wide"),
    "ilastik": ("grey", "colour"),
    "ours": ("3 s", "60 s"),
}
"""Of each tool: what it does unasked, and our best guess at a better setting; of ours, when it is scored."""
PYRAMID = [1, 2, 4, 8]
WIDE = "original " + " ".join(
    f"{f}={s}"
    for s in (1, 2, 4, 8, 16)
    for f in ("gaussian_blur", "difference_of_gaussian", "laplace_box_of_gaussian_blur", "sobel_of_gaussian_blur")
)


class Convpaint:
    """napari-convpaint with the features that it can use without a download."""

    def __init__(self, variant):
        from napari_convpaint.convpaint_model import ConvpaintModel

        self.model = ConvpaintModel(alias="gaussian")
        settings = {"channel_mode": "rgb"}
        if variant == "pyramid":
            settings |= {"fe_scalings": PYRAMID, "clf_iterations": 300}
        self.model.set_params(**settings)

    def fit(self, images, strokes):
        self.model.train(
            [np.moveaxis(i, -1, 0) for i in images], list(strokes), fe_use_device="cpu", clf_use_device="cpu"
        )

    def predict(self, image):
        return self.model.segment(np.moveaxis(image, -1, 0), fe_use_device="cpu")


class Apoc:
    """APOC on OpenCL; ``wide``: deeper trees on filters of sigma 1 to 16."""

    def __init__(self, variant):
        import apoc
        import pyclesperanto_prototype as cle

        self.apoc, self.pull = apoc, cle.pull
        self.features = WIDE if variant == "wide" else apoc.PredefinedFeatureSet.object_size_1_to_5_px.value
        path = str(Path(tempfile.mkdtemp()) / "pixels.cl")
        # With trees of depth 8 it was not ready after a minute.
        self.model = apoc.PixelClassifier(
            opencl_filename=path, max_depth=4 if variant == "wide" else 2, num_ensembles=100
        )

    def stack(self, image):
        channels = [np.ascontiguousarray(image[..., c], dtype=np.float32) for c in range(3)]
        return [f for c in channels for f in self.apoc.generate_feature_stack(c, self.features)]

    def fit(self, images, strokes):
        # As one image: OpenCL takes a second and a half to set up for each, however small.
        features = [self.pull(f) for f in self.stack(_mosaic(np.stack(images)))]
        self.model.train(features=features, ground_truth=_mosaic(np.stack(strokes)))

    def predict(self, image):
        return self.pull(self.model.predict(features=self.stack(image)))


class Ilastik:
    """ilastik-napari's own filters and classifier, all filters at all scales as its dialog has them ticked.

    It takes one channel. ``grey`` is the mean of three; ``colour`` (not in its window) joins the filters of each.
    """

    def __init__(self, variant):
        _stand_in_for_fastfilters()
        from ilastik.napari import filters
        from ilastik.napari.classifier import NDSparseClassifier
        from sklearn.ensemble import RandomForestClassifier

        kinds = (
            filters.LaplacianOfGaussian,
            filters.GaussianGradientMagnitude,
            filters.DifferenceOfGaussians,
            filters.StructureTensorEigenvalues,
            filters.HessianOfGaussianEigenvalues,
        )
        scales = (0.3, 0.7, 1.0, 1.6, 3.5, 5.0, 10.0)
        chosen = [filters.Gaussian(s) for s in scales] + [kind(s) for kind in kinds for s in scales[1:]]
        self.filters, self.colour = filters.FilterSet(filters=chosen), variant == "colour"
        self.model = NDSparseClassifier(RandomForestClassifier())

    def maps(self, image):
        planes = np.moveaxis(image, -1, 0) if self.colour else [image.mean(-1)]
        return np.concatenate(
            [self.filters.transform(np.ascontiguousarray(p, np.float32)) for p in planes], axis=-1, dtype=np.float32
        )

    def fit(self, images, strokes):
        rows = [self.maps(i)[s > 0] for i, s in zip(images, strokes, strict=True)]
        self.model.estimator.fit(np.concatenate(rows), np.concatenate([s[s > 0] for s in strokes]))

    def predict(self, image):
        return self.model.predict(self.maps(image)).reshape(image.shape[:2])


def _stand_in_for_fastfilters():
    """ilastik-napari imports fastfilters, which PyPI lacks: the same filters by SciPy, slower and in all else alike."""
    from scipy import ndimage

    def derivative(x, sigma, *order):
        return ndimage.gaussian_filter(x, sigma, order, truncate=3)

    def eigenvalues(yy, xy, xx):
        middle, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
        return np.stack([middle + spread, middle - spread], -1)

    def structure(x, innerScale, outerScale):
        dy, dx = derivative(x, innerScale, 1, 0), derivative(x, innerScale, 0, 1)
        return eigenvalues(*(ndimage.gaussian_filter(p, outerScale, truncate=3) for p in (dy * dy, dy * dx, dx * dx)))

    old = types.ModuleType("fastfilters")
    old.gaussianSmoothing = lambda x, sigma: derivative(x, sigma, 0, 0)
    old.gaussianGradientMagnitude = lambda x, sigma: ndimage.gaussian_gradient_magnitude(x, sigma, truncate=3)
    old.laplacianOfGaussian = lambda x, scale: ndimage.gaussian_laplace(x, scale, truncate=3)
    old.hessianOfGaussianEigenvalues = lambda x, scale: eigenvalues(
        *(derivative(x, scale, *order) for order in ((2, 0), (1, 1), (0, 2)))
    )
    old.structureTensorEigenvalues = structure
    sys.modules["fastfilters"] = old


class RandomForest:
    """Our baseline; ``wide``: filters up to sigma 32, twice the trees, leaves of at least five pixels."""

    def __init__(self, variant):
        from skimage.feature import multiscale_basic_features

        from tests.benchmarks.forest import Forest

        self.model = Forest(0, 1)
        if variant == "wide":
            settings = (True, True, True, 1, 32, None, 1)
            self.model.features = lambda image: multiscale_basic_features(image, *settings, channel_axis=-1)
            self.model.trees.set_params(n_estimators=200, max_depth=None, min_samples_leaf=5)

    def fit(self, images, strokes):
        self.model.fit(images, strokes)

    def predict(self, image):
        return self.model.predict(image)


class Ours:
    """Our learner, without its window, for so many CPU seconds; it draws the same strokes again, one by one."""

    def __init__(self, variant):
        from napari_sparseseg.learning.torch_runtime import import_torch

        import_torch().set_num_threads(1)
        self.seconds = float(variant.split()[0])

    def begin(self, classes, seed):
        self.classes, self.seed = classes, seed

    def fit(self, images, strokes):
        from napari_sparseseg.config import TrainConfig
        from napari_sparseseg.geometry import Frame
        from napari_sparseseg.learning.learner import Learner
        from napari_sparseseg.learning.sources import Source
        from napari_sparseseg.slides.backends.array import ArraySlide

        annotated = self.drawn(strokes)
        clock = time.process_time()
        slides = [ArraySlide(image, mpp=1.0, name=f"field {k}") for k, image in enumerate(images)]
        learner = Learner(TrainConfig(mpp=1.0, seed=self.seed, device="cpu"), annotated[0].classes)
        learner.set_sources([Source(s, a.snapshot(), Frame()) for s, a in zip(slides, annotated, strict=True)])
        learner.refit()
        while time.process_time() - clock < self.seconds:
            learner.step()
        self.model = learner.model

    def drawn(self, strokes):
        """A mask does not say where one stroke ends, and the learner holds out whole strokes."""
        from tests.benchmarks import bench_learner
        from tests.helpers.data import real_data

        fields = bench_learner.load(real_data("ebhi_seg"))
        fields = fields.two_classes() if self.classes == 2 else fields
        rng = np.random.default_rng(self.seed)
        train, _ = bench_learner.split(fields.cases, self.seed)
        found = [bench_learner.scribble(fields.labels[i], self.classes, rng) for i in train]
        if any((a.read((0, 0, 224, 224)) != s).any() for a, s in zip(found, strokes, strict=True)):
            raise RuntimeError("these are not the strokes that the others were given")
        return found

    def predict(self, image):
        from napari_sparseseg.geometry import Box, Frame
        from napari_sparseseg.prediction.tiles import predict_region
        from napari_sparseseg.slides.backends.array import ArraySlide

        slide, (h, w) = ArraySlide(image, mpp=1.0, name="test"), image.shape[:2]
        labels = np.empty((h, w), np.uint8)
        for y, x in np.ndindex(-(-h // 2048), -(-w // 2048)):
            tile = Box(2048 * y, 2048 * x, 2048, 2048).intersection(Box(0, 0, h, w))
            labels[tile.slices()] = predict_region(self.model, slide, tile, Frame())[0]
        return labels


TOOLS = {"convpaint": Convpaint, "apoc": Apoc, "ilastik": Ilastik, "forest": RandomForest, "ours": Ours}


def largest(tool, field, sides, seconds):
    """Print, per side, CPU seconds and MB of labelling a square of so many pixels; the first failure ends it."""
    for side in sides:
        times = -(-side // field.shape[0])
        image = np.tile(field, (times, times, 1))[:side, :side]
        started, done = time.process_time(), threading.Event()
        threading.Thread(target=_limit, args=(side, started + seconds, seconds, done), daemon=True).start()
        try:
            tool.predict(image)
        except Exception as error:  # noqa: BLE001 - whatever a tool dies of is the result
            print(json.dumps({"side": side, "failed": f"{type(error).__name__}: {error}"[:200], "peak MB": peak()}))
            return
        finally:
            done.set()
        print(json.dumps({"side": side, "seconds": time.process_time() - started, "peak MB": peak()}), flush=True)


def _limit(side, end, seconds, done):
    """End the process when it has used so many CPU seconds: on a busy machine a clock on the wall says nothing."""
    while not done.wait(0.2):
        if time.process_time() > end:
            print(
                json.dumps({"side": side, "failed": f"not done after {seconds:g} CPU s", "peak MB": peak()}), flush=True
            )
            os._exit(0)


def window(name, train, strokes):
    """Print how long the real window did not answer, at rest and from a click on the tool's button to its result."""
    # With triton convpaint's window ended in a segmentation fault here: its LLVM against that of Mesa's OpenGL.
    sys.modules["triton"] = None
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    viewer = napari.Viewer()
    click, finished = PRESSED[name](viewer, _mosaic(train), _mosaic(strokes))
    beats = [time.perf_counter()]
    timer = QTimer()
    timer.setInterval(10)
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start()

    def watch(until):
        del beats[:-1]
        started = beats[0] = time.perf_counter()
        while not until(time.perf_counter() - started):
            QApplication.processEvents()
            time.sleep(0.001)
        return 1e3 * float(np.diff(beats).max()) - 10, time.perf_counter() - started

    watch(lambda seconds: seconds > 5)  # the window settles
    idle, _ = watch(lambda seconds: seconds > 3)
    QTimer.singleShot(0, click)
    longest, seconds = watch(lambda seconds: finished() and len(beats) > 5)
    print(json.dumps({"idle, ms": idle, "longest, ms": longest, "seconds": seconds, "side": 224 * _across(train)}))
    sys.stdout.flush()
    os._exit(0)


def _across(parts):
    return math.isqrt(len(parts) - 1) + 1


def _mosaic(parts):
    """All fields side by side: a window's button takes one image."""
    n, h = _across(parts), parts.shape[1]
    out = np.zeros((n * h, n * h, *parts.shape[3:]), parts.dtype)
    for k, part in enumerate(parts):
        y, x = divmod(k, n)
        out[y * h : (y + 1) * h, x * h : (x + 1) * h] = part
    return out


def _press_convpaint(viewer, image, strokes):
    """RGB, Gaussian features from the start: without a network it cannot open with its VGG16. It segments unasked."""
    from napari_convpaint.convpaint_model import ConvpaintModel
    from qtpy.QtWidgets import QApplication

    known = ConvpaintModel(alias="gaussian").get_params()
    ConvpaintModel.get_default_params = staticmethod(lambda: copy.deepcopy(known))
    viewer.add_image(image, rgb=True, name="fields")
    viewer.add_labels(strokes, name="annotations")
    _, widget = viewer.window.add_plugin_dock_widget("napari-convpaint")
    while not hasattr(widget, "cp_model"):  # it goes on with its set-up after it is shown
        QApplication.processEvents()
    widget.radio_rgb.setChecked(True)
    QApplication.processEvents()
    widget.annotations_layer_selection_widget.value.data = strokes  # the layer that it chose, or made
    before = len(viewer.layers)
    return widget.train_classifier_btn.click, lambda: len(viewer.layers) > before


def _press_ilastik(viewer, image, strokes):
    """One channel, all filters: what its window offers."""
    _stand_in_for_fastfilters()
    from ilastik.napari.plugin import PixelClassificationWidget

    viewer.add_image(image.mean(-1).astype(np.float32), name="fields")
    viewer.add_labels(strokes, name="annotations")
    widget = PixelClassificationWidget(viewer)
    viewer.window.add_dock_widget(widget)
    return widget._run_button.click, lambda: "ilastik-segmentation" in viewer.layers


PRESSED = {"convpaint": _press_convpaint, "ilastik": _press_ilastik}


def labelled(tool, test):
    """Class ids of all fields; of APOC's as one image."""
    if not isinstance(tool, Apoc):
        return np.stack([np.asarray(tool.predict(image)).reshape(image.shape[:2]) for image in test]).astype(np.uint8)
    (n, h, w, _), across = test.shape, _across(test)
    whole = np.asarray(tool.predict(_mosaic(test))).reshape(across, h, across, w)
    return np.moveaxis(whole, 2, 1).reshape(-1, h, w)[:n].astype(np.uint8)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("variant")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--sides", type=int, nargs="*", default=[])
    parser.add_argument("--window", action="store_true", help="only this: its button in a real napari window")
    parser.add_argument("--longest", type=float, default=40.0)
    parser.add_argument("--memory-gb", type=float, default=12.0)
    given = parser.parse_args()
    limit = int(given.memory_gb * 2**30)
    # What is written to counts, not what is only reserved: torch and OpenCL reserve a lot.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with np.load(given.data) as data:
        train, strokes, test = data["train"], data["strokes"], data["test"]
        classes, seed = int(data["classes"]), int(data["seed"])
    if given.window:
        window(given.tool, train, strokes)
    tool = TOOLS[given.tool](given.variant)
    if isinstance(tool, Ours):
        tool.begin(classes, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    tool.fit(list(train), list(strokes))
    fit = {"fit seconds": time.perf_counter() - wall, "fit CPU seconds": time.process_time() - cpu}
    started, cpu = time.perf_counter(), time.process_time()
    labels = labelled(tool, test)
    pixels = test[..., 0].size / 1e6
    rates = {
        "predict MP/s": pixels / (time.perf_counter() - started),
        "predict MP/CPU s": pixels / (time.process_time() - cpu),
    }
    np.savez(given.out, labels=labels)
    print(json.dumps({**fit, **rates, "peak MB": peak(), "load": os.getloadavg()[0]}), flush=True)
    largest(tool, test[0], given.sides, given.longest)


if __name__ == "__main__":
    main()
