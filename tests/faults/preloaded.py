"""What the fork server of `acts` imports once, so that a process costs milliseconds."""

import tests.faults.acts  # noqa: F401
from napari_sparseseg.session.training import Training

Training.warm_up()
