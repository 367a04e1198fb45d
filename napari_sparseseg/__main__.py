"""``python -m napari_sparseseg`` is the same as the ``napari-sparseseg`` command."""

from __future__ import annotations

import sys

from napari_sparseseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
