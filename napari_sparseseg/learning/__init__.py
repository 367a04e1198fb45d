"""Everything that learns: encoder, instant head, U-Net, training loop, model files. Most modules import torch.

Importing any of it hides triton beside a viewer, before torch comes: see `torch_runtime`.
"""

from napari_sparseseg.learning.torch_runtime import hide_triton_from_viewer

hide_triton_from_viewer()
