"""What runs inside each tool's own environment: fit on strokes, label fields, say what it took. Knows nothing of us.

    PYTHON peer_programs.py TOOL VARIANT DATA.npz OUT.npz [--sides N ...]

DATA: ``train`` (n, h, w, 3) uint8, ``strokes`` (n, h, w) uint8 with 0 = unlabelled, ``test`` (m, h, w, 3). OUT:
``labels`` (m, h, w). The last line printed is JSON. Only numpy is imported before the tool.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

VARIANTS = {"convpaint": ("default", "pyramid"), "apoc": ("default", "wide"), "forest": ("",)}
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
            settings["fe_scalings"] = PYRAMID
        self.model.set_params(**settings)

    def fit(self, images, strokes):
        self.model.train(
            [np.moveaxis(i, -1, 0) for i in images], list(strokes), fe_use_device="cpu", clf_use_device="cpu"
        )

    def predict(self, image):
        return self.model.segment(np.moveaxis(image, -1, 0), fe_use_device="cpu")


class Apoc:
    """APOC on OpenCL, filters field by field; ``wide``: deeper trees on filters of sigma 1 to 16."""

    def __init__(self, variant):
        import apoc
        import pyclesperanto_prototype as cle

        self.apoc, self.pull = apoc, cle.pull
        self.features = WIDE if variant == "wide" else apoc.PredefinedFeatureSet.object_size_1_to_5_px.value
        path = str(Path(tempfile.mkdtemp()) / "pixels.cl")
        self.model = apoc.PixelClassifier(
            opencl_filename=path, max_depth=8 if variant == "wide" else 2, num_ensembles=100
        )

    def stack(self, image):
        channels = [np.ascontiguousarray(image[..., c], dtype=np.float32) for c in range(3)]
        return [f for c in channels for f in self.apoc.generate_feature_stack(c, self.features)]

    def fit(self, images, strokes):
        parts = [[self.pull(f) for f in self.stack(i)] for i in images]
        joint = [np.concatenate([p[k] for p in parts]) for k in range(len(parts[0]))]
        self.model.train(features=joint, ground_truth=np.concatenate(list(strokes)))

    def predict(self, image):
        return self.pull(self.model.predict(features=self.stack(image)))


class RandomForest:
    """Our baseline, for the same measurements."""

    def __init__(self, variant):
        from tests.benchmarks.forest import Forest

        self.model = Forest(0, int(os.environ.get("OMP_NUM_THREADS", "1")))

    def fit(self, images, strokes):
        self.model.fit(images, strokes)

    def predict(self, image):
        return self.model.predict(image)


TOOLS = {"convpaint": Convpaint, "apoc": Apoc, "forest": RandomForest}


def largest(tool, field, sides, seconds):
    """Per side: seconds and MB of labelling a square of so many pixels, or why it ended."""
    rows = []
    for side in sides:
        times = -(-side // field.shape[0])
        image = np.tile(field, (times, times, 1))[:side, :side]
        started = time.perf_counter()
        try:
            tool.predict(image)
        except Exception as error:  # noqa: BLE001 - whatever a tool dies of is the result
            rows.append({"side": side, "failed": f"{type(error).__name__}: {error}"[:200]})
            break
        taken = time.perf_counter() - started
        rows.append({"side": side, "seconds": taken, "peak MB": peak()})
        if taken > seconds:
            break
    return rows


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("variant")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--sides", type=int, nargs="*", default=[])
    parser.add_argument("--longest", type=float, default=60.0)
    parser.add_argument("--memory-gb", type=float, default=12.0)
    given = parser.parse_args()
    limit = int(given.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with np.load(given.data) as data:
        train, strokes, test = data["train"], data["strokes"], data["test"]
    tool = TOOLS[given.tool](given.variant)
    wall, cpu = time.perf_counter(), time.process_time()
    tool.fit(list(train), list(strokes))
    fit = {"fit seconds": time.perf_counter() - wall, "fit CPU seconds": time.process_time() - cpu}
    started = time.perf_counter()
    labels = np.stack([np.asarray(tool.predict(image)).reshape(image.shape[:2]) for image in test]).astype(np.uint8)
    rate = test[..., 0].size / (time.perf_counter() - started) / 1e6
    np.savez(given.out, labels=labels)
    found = {**fit, "predict MP/s": rate, "peak MB": peak(), "load": os.getloadavg()[0]}
    print(json.dumps({**found, "sides": largest(tool, test[0], given.sides, given.longest)}))


if __name__ == "__main__":
    main()
