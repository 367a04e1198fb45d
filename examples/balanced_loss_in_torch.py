"""The balanced loss in a training loop of your own: any network, any data, labels that are mostly 0.

Run it: ``python balanced_loss_in_torch.py``. It trains a tiny network on patches of the sample slide, once per
balancing, and shows how much each class counts in the last batch.
"""

import numpy as np
import torch
from torch import nn

from napari_sparseseg import Annotations, open_slide
from napari_sparseseg.balancing import BatchTotals, balanced_cross_entropy, count_labels, pixel_weights
from napari_sparseseg.samples import sample_scribbles, sample_slide

SIDE, BATCH, STEPS = 128, 8, 20
rng = np.random.default_rng(0)

with open_slide(sample_slide()) as slide:
    annotations = Annotations.from_geojson(sample_scribbles(), slide.shape)
    image = slide.read((0, 0, *slide.shape), level=1)  # (h, w, 3)
labels = annotations.read((0, 0, *annotations.shape), level=1)  # (h, w), 0 = unlabelled
classes = len(annotations.classes)
labelled = np.argwhere(labels)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Patches around labelled pixels: images (B, 3, h, w) in 0..1, labels (B, h, w)."""
    centres = labelled[rng.integers(len(labelled), size=BATCH)]
    corners = np.clip(centres - SIDE // 2, 0, np.array(labels.shape) - SIDE)
    x = np.stack([image[i : i + SIDE, j : j + SIDE] for i, j in corners])
    y = np.stack([labels[i : i + SIDE, j : j + SIDE] for i, j in corners])
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(y)


for balancing in ("none", "instance", "mini-batch"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 1)
    )
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(STEPS):
        x, y = batch()
        loss = balanced_cross_entropy(net(x), y, balancing)  # weights sum to 1: do not divide by the number of pixels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = pixel_weights(y, balancing)
    shares = [float(weights[y == c.id].sum()) for c in annotations.classes]
    print(f"{balancing:10s} loss {loss.item():.3f}, shares of the classes", [round(s, 2) for s in shares])

# The same in two halves, for a batch that does not fit into memory: totals of the whole batch first.
totals = BatchTotals.of(count_labels(y))
halves = [balanced_cross_entropy(net(x[part]), y[part], totals=totals) for part in (slice(0, 4), slice(4, 8))]
whole = balanced_cross_entropy(net(x), y)
print(f"two halves {sum(halves).item():.6f}, whole batch {whole.item():.6f}")
assert torch.isclose(sum(halves), whole)
