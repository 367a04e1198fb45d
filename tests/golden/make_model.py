"""Makes a golden model with the package of an earlier commit: ``PYTHONPATH=CHECKOUT python make_model.py FOLDER NAME``.

``background-edges`` was made so with commit d07bec6 (2026-11-26), ``mirrored-edges`` with 9d64e1b (2026-11-30): both
with model version 1, without a word in the file about how the model reads beyond a slide's edges. They are never made
anew. The encoder's weights are those of the bundled file and are left out.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np
import tifffile

SIDE, ENCODER = 128, "features.encoder.net."


def write_slide(path: Path) -> Path:
    """Stripes on the left, dots on the right, without noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.full((SIDE, SIDE, 3), (225, 170, 200), np.uint8)
    image[(np.sin(y / 9) > 0) & (x < SIDE // 2)] = (190, 110, 160)
    image[(np.hypot(y % 16 - 8, x % 16 - 8) < 4) & (x >= SIDE // 2)] = (110, 70, 150)
    options = {"tile": (64, 64), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, resolution=(1e4, 1e4), **options)
    return path


def main() -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    from napari_sparseseg import Session
    from napari_sparseseg.learning.model import Model
    from napari_sparseseg.learning.network import TwoSpeedNet

    folder, name = Path(sys.argv[1]), sys.argv[2]
    slide, full = write_slide(folder / "slide.tif"), folder / "full.safetensors"
    with Session(["stripes", "dots"]) as session:
        session.open(slide)
        for row in (20, 100):
            session.annotations.paint([(row, 8), (row + 5, 50)], 3, 1)
            session.annotations.paint([(row, 75), (row, 120)], 3, 2)
        session.train(steps=1, wait=True, patch_px=64, batch_size=1, device="cpu")
        model = session.model
        Model(model.recipe, TwoSpeedNet(model.net.features, model.net.head), model.scale, model.memory).save(full)
    with Session(["stripes", "dots"]) as session:
        session.open(slide)
        session.load_model(full)
        _, probabilities = session.predict((0, 0, SIDE, SIDE))
    with safe_open(full, framework="numpy") as opened:
        metadata = opened.metadata()
    left = {key: value for key, value in load_file(full).items() if not key.startswith(ENCODER)}
    save_file(left, folder / name, metadata=metadata)
    (folder / f"{name}.safetensors.xz").write_bytes(lzma.compress((folder / name).read_bytes(), preset=9))
    np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities[:, ::4, ::4].astype(np.float32))


if __name__ == "__main__":
    main()
