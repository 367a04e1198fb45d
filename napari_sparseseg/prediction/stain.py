"""Whether a slide is stained like those a model was trained on, and the model with the slide's colours matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_sparseseg.errors import PredictionError

if TYPE_CHECKING:
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.prediction.tiles import SavableSegmenter
    from napari_sparseseg.slides import Slide

WORST = 3


@dataclass(frozen=True, slots=True)
class StainCheck:
    """How a slide compares with the slides a model was trained on.

    Attributes
    ----------
    unlike
        Distance of the slide's tissue from that of training; above 1 it is farther than held-out tissue was.
    worst
        Level-0 boxes (y, x, h, w) of what is least alike, worst first.
    adapted
        Whether the colours were matched for the prediction.
    """

    unlike: float
    worst: tuple[tuple[int, int, int, int], ...]
    adapted: bool = False

    @property
    def warning(self) -> str:
        """For the user; empty where the slide is like those of training."""
        if self.unlike <= 1:
            return ""
        y, x, h, w = self.worst[0]
        said = (
            f"stain or scanner differ from the training slides ({self.unlike:.1f} times the usual limit, most around "
            f"x {x + w // 2}, y {y + h // 2})"
        )
        return f"{said}; colours were matched" if self.adapted else f"{said}: check the result before you trust it"


def checked(model: SavableSegmenter, slide: Slide, *, adapt: bool) -> tuple[SavableSegmenter, StainCheck | None]:
    """The model to predict a slide with, and how the slide compares; None where the model does not say, or on glass.

    Raises
    ------
    PredictionError
        When colours are to be matched and cannot be.
    SlideError
        Where the slide cannot be read.
    """
    from napari_sparseseg.learning.stains import Stain, StainMap, patches_of

    known = getattr(model.metadata, "tissue", ())
    stain = Stain.of(known) if known and slide.is_rgb and slide.dtype == "uint8" else None
    patches = [] if stain is None else patches_of(slide, slide.frame(model.metadata.mpp if slide.mpp else None))
    if stain is None or not patches:
        if adapt:
            raise PredictionError(
                "the stain cannot be adapted: the model does not know how its training slides look (it is of an "
                "earlier version, of another program, or of little tissue), or the slide has no tissue. Leave the "
                "option out."
            )
        return model, None
    order = sorted(patches, key=lambda patch: -stain.unlike([patch[1]]))
    descriptions = [patch for _, patch in patches]
    worst = tuple((box.y, box.x, box.height, box.width) for box, _ in order[:WORST])
    found = StainCheck(round(stain.unlike(descriptions), 3), worst, adapt)
    if not adapt:
        return model, found
    trained: Model = model  # type: ignore[assignment]  # only own models have patches
    return trained.with_stain(StainMap.between(descriptions, stain)), found
