"""Everything that learns: encoder, instant head, U-Net, training loop, model files. Importing any of it imports torch.

**A trap on Linux, measured.** The CUDA build of torch brings triton; timm, torchvision and the optimisers import it,
and its LLVM clashes with the LLVM of Mesa's OpenGL drivers: once a GL context exists, which is so whenever napari is
open, the import ends in a segmentation fault. With an empty entry in ``sys.modules`` those packages take triton for
absent and everything but ``torch.compile`` works. So in a viewer's process triton is hidden here, before torch comes.
"""

from napari_sparseseg.learning.torch_runtime import hide_triton_from_viewer

hide_triton_from_viewer()
