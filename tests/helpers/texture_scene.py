"""Two textures, strokes on both, and learners that were fitted to them."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from napari_sparseseg.annotations import Annotations
from napari_sparseseg.config import ClassDef, TrainConfig
from napari_sparseseg.geometry import Box
from napari_sparseseg.learning.learner import Learner, LearnerSettings
from napari_sparseseg.learning.sources import Source
from napari_sparseseg.learning.validation import ValidationSettings
from napari_sparseseg.prediction.tiles import predict_region
from napari_sparseseg.slides.backends.array import ArraySlide
from tests.helpers.data import two_textures

SIDE = 384
CLASSES = (ClassDef(4, "stripes", "#e69f00"), ClassDef(9, "dots", "#56b4e9"))
CONFIG = TrainConfig(patch_px=128, batch_size=2, seed=1, device="cpu")


def slide_of(seed=0):
    return ArraySlide(two_textures(SIDE, seed), mpp=1.0, name=f"textures {seed}")


def strokes(a, flip=False):
    """Three strokes in each half."""
    for y in (60, 180, 300):
        a.paint([(y, 40), (y + 20, 150)], 5, 9 if flip else 4)
        a.paint([(y, 230), (y + 20, 340)], 5, 4 if flip else 9)
    return a


def annotated(**kwargs):
    return strokes(Annotations((SIDE, SIDE), classes=CLASSES), **kwargs)


def sources(slide, a):
    return [Source(slide, a.snapshot(), slide.frame(1.0))]


def accuracy(model, slide, classes=(4, 9)):
    labels, _ = predict_region(model, slide, Box(0, 0, SIDE, SIDE), slide.frame(1.0))
    truth = np.where(np.arange(SIDE) < SIDE // 2, *classes)
    return float((labels == truth).mean())


def fitted(slide, a, config=CONFIG, **kwargs):
    learner = Learner(config, a.classes, **kwargs)
    learner.set_sources(sources(slide, a))
    learner.refit()
    while learner.pending:
        learner.step()
    return learner


def comparing(settings=None, **validation):
    """Settings of a learner that compares at other times, or by other margins; its decoder has settled at once."""
    chosen = ValidationSettings(**{"settled": 0, **validation})
    return dataclasses.replace(settings or LearnerSettings(), validation=chosen)


NEVER = comparing(first=10**9)


def until_compared(learner):
    while not (report := learner.step()).validation:
        pass
    return report


def steps(learner, n):
    end = learner.step_count + n
    while learner.step_count < end:
        report = learner.step()
    return report


class Slow(ArraySlide):
    """Takes its time to read."""

    def read_region(self, *args, **kwargs):
        time.sleep(0.02)
        return super().read_region(*args, **kwargs)
