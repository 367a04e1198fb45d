"""Who is warned of another stain, and what matching colours brings, on jittered real tissue.

    python -m tests.benchmarks.stains            # 5 splits for the warnings, 3 seeds for Dice: 10 CPU minutes
    python -m tests.benchmarks.stains --seeds 0  # 3 CPU minutes
    python -m tests.benchmarks.stains --seeds    # the warnings alone: 1 minute

Warnings: half of the cases of EBHI-Seg (tiles of CRC-VAL-HE-7K, patches of CMU-1) are the training slides, eight fields
of the other half a slide, as they are or jittered; so are eight fields of the other sets. Dice: heads fitted to sparse
strokes (no decoder) on `glands` and `mosaics` of `few_dense`, judged on other cases or tiles that are all jittered
alike, before and after matching. Jitter of strength s: the three stains of HED space are multiplied by exp(N(0, s)) and
shifted by N(0, s / 10), channels mixed by N(0, 0.15 s), all darkened by |N(0, s / 10)|; 0.1 is little, with 0.6 it
hardly looks like H&E.
"""

from __future__ import annotations

import argparse
import csv
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from imageio.v3 import imread
from skimage.color import hed_from_rgb, rgb_from_hed

from napari_sparseseg import open_slide
from napari_sparseseg.config import TrainConfig, make_classes
from napari_sparseseg.learning.learner import Learner
from napari_sparseseg.learning.stains import Stain, StainMap, described, optical_density
from tests.benchmarks import common, few_dense
from tests.helpers.data import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Jitter = Callable[[np.ndarray], np.ndarray]

FIELDS, SLIDES, SPLITS = 8, 12, 5
WEAK = (0.0, 0.1, 0.2, 0.3, 0.6)
STRONG = (0.3, 0.6, 1.0)
AGAIN = 3


def jitter(strength: float, rng: np.random.Generator) -> Jitter:
    """One other stain."""
    gain, shift = np.exp(rng.normal(0, strength, 3)), rng.normal(0, strength / 10, 3)
    mix = np.eye(3) + rng.normal(0, 0.15 * strength, (3, 3))
    dark = abs(rng.normal(0, strength / 10, 3))

    def apply(image: np.ndarray) -> np.ndarray:
        density = optical_density(image)
        stains = density @ hed_from_rgb * gain + shift * (density.mean(-1, keepdims=True) > 0.1)
        seen = np.exp(-(stains @ rgb_from_hed @ mix + dark)) * 256 - 1
        return np.clip(seen, 0, 255).round().astype(np.uint8)

    return apply if strength else lambda image: image


def sets() -> dict[str, list[tuple[str, np.ndarray]]]:
    """(case, field) of each set."""
    rows = list(csv.DictReader((DATA / "ebhi_seg" / "manifest.csv").open()))
    case = re.compile(r"__GT[A-Za-z]*(\d+)")
    out = {"EBHI-Seg": [(case.search(r["image"])[1], imread(DATA / "ebhi_seg" / r["image"])) for r in rows]}
    tiles = sorted(p for p in (DATA / "crc7k").iterdir() if not p.name.startswith("DEB"))
    out["CRC-VAL-HE-7K"] = [(p.name, imread(p)[..., :3]) for p in tiles]
    with open_slide(DATA / "CMU-1-Small-Region.svs") as slide:
        whole = slide.read((0, 0, *slide.shape))
    corners = [(y, x) for y in range(0, whole.shape[0] - 256, 256) for x in range(0, whole.shape[1] - 256, 256)]
    out["CMU-1"] = [(f"{y},{x}", whole[y : y + 256, x : x + 256]) for y, x in corners]
    bones = sorted((DATA / "osteosarcoma").glob("*.jpg"))
    out["osteosarcoma"] = [(p.name, imread(p)[:256, :256, :3]) for p in bones]
    return {k: [(c, f) for c, f in v if described(f) is not None] for k, v in out.items()}


def warnings() -> list[dict[str, Any]]:
    """How often a slide of eight fields is warned of."""
    found, rows = sets(), []
    for trained in list(found)[:3]:
        for split in range(SPLITS):
            rng = np.random.default_rng(split)
            cases = rng.permutation(sorted({c for c, _ in found[trained]}))
            mine = set(cases[: len(cases) // 2])
            stain = Stain.of([described(f) for c, f in found[trained] if c in mine])
            for name, fields in found.items():
                left = [f for c, f in fields if name != trained or c not in mine]
                for strength in WEAK if name == trained else (0.0,):
                    for _ in range(SLIDES):
                        other = jitter(strength, rng)
                        slide = [described(other(left[i])) for i in rng.permutation(len(left))[:FIELDS]]
                        unlike = stain.unlike([p for p in slide if p is not None])
                        rows.append({"trained": trained, "slide": name, "jitter": strength, "unlike": unlike})
    return rows


def matched(seed: int, name: str) -> list[dict[str, Any]]:
    """Dice on jittered fields, as they are and matched."""
    task, rng = getattr(few_dense, name)(seed), np.random.default_rng(seed)
    train, test = (task.train[:6], task.test[:16]) if name == "glands" else (task.train[:4], task.test[:3])
    task = common.Task(**{**vars(task), "train": train, "test": test})
    learner = Learner(TrainConfig(mpp=1.0, seed=seed, device="cpu"), make_classes(task.classes), device="cpu")
    learner.set_sources(common.sources(task, common.sparse(task, rng), 1.0))
    model = learner.refit()
    halves = [half for f in train for half in (f.image[:224, :224], f.image[224:, 224:], f.image[:224, 224:])]
    stain = Stain.of([p for p in map(described, halves) if p is not None])
    rows = []
    for strength in (0.0, *STRONG):
        for _ in range(AGAIN if strength else 1):
            other = jitter(strength, rng)
            pictures = tuple(common.Field(other(f.image), f.truth) for f in test)
            seen = [p for p in (described(f.image) for f in pictures) if p is not None]
            judged = common.Task(**{**vars(task), "test": pictures})
            adapted = model.with_stain(StainMap.between(seen, stain))
            raw, better = (common.model_scores(judged, m)["mean"] for m in (model, adapted))
            row = {"set": name, "seed": seed, "jitter": strength, "unlike": stain.unlike(seen)}
            rows.append({**row, "as it is": raw, "matched": better})
    return rows


def publish(warned: Sequence[dict[str, Any]], dice: Sequence[dict[str, Any]]) -> None:
    lines, keys = [], dict.fromkeys((r["trained"], r["slide"], r["jitter"]) for r in warned)
    for key in keys:
        own = [r["unlike"] for r in warned if (r["trained"], r["slide"], r["jitter"]) == key]
        share = f"{np.mean(np.array(own) > 1):.2f} of {len(own)}"
        lines.append(
            [key[0], "the same" if key[0] == key[1] else key[1], f"{key[2]:g}", f"{np.median(own):.2f}", share]
        )
    text = ["# Another stain", common.markdown(["trained on", "slide", "jitter", "unlike, median", "warned"], lines)]
    lines = []
    for key in dict.fromkeys((r["set"], r["jitter"]) for r in dice):
        own = [r for r in dice if (r["set"], r["jitter"]) == key]
        raw, better = (np.array([r[k] for r in own]) for k in ("as it is", "matched"))
        plain = np.mean([r["as it is"] for r in dice if r["set"] == key[0] and not r["jitter"]])
        line = [key[0], f"{key[1]:g}", str(len(own)), f"{plain:.3f}", f"{raw.mean():.3f}", f"{better.mean():.3f}"]
        lines.append([*line, f"{(better > raw).sum()} of {len(own)}", f"{(better - raw).min():+.3f}"])
    header = ["set", "jitter", "runs", "Dice without jitter", "with it", "matched", "better in", "worst change"]
    text.append(common.markdown(header, lines))
    common.report("stains", "\n\n".join(text), {"warned": list(warned), "dice": list(dice)})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    given = parser.parse_args(argv)
    common.torch.set_num_threads(1)
    dice: list[dict[str, Any]] = []
    warned = warnings()
    for seed in given.seeds:
        dice += [row for name in ("glands", "mosaics") for row in matched(seed, name)]
        publish(warned, dice)
    publish(warned, dice)


if __name__ == "__main__":
    main()
