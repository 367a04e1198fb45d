"""Convert annotations between formats, and see that nothing changes on the way.

Run it in an empty folder: ``python convert_annotations.py``. The shell does the same:
``napari-sparseseg convert IN OUT --slide SLIDE``.
"""

from napari_sparseseg import load_annotations, open_slide, save_annotations
from napari_sparseseg.samples import sample_scribbles, sample_slide

with open_slide(sample_slide()) as slide:
    shape = slide.shape

annotations = load_annotations(sample_scribbles(), shape)
print("from QuPath:", {c.name: annotations.counts()[c.id] for c in annotations.classes})

# A dense region: all of this square is labelled; what is not scribbled on in it is stroma.
stroma = next(c.id for c in annotations.classes if c.name == "stroma")
annotations.fill_polygon([(600, 1000), (600, 1300), (900, 1300), (900, 1000)], stroma, dense=True)

for name in ("all.sparseseg", "for-qupath.geojson", "for-asap.xml", "labels.ome.tif", "labels.ome.zarr"):
    save_annotations(annotations, name, overwrite=True)
    back = load_annotations(name, shape, annotations.classes)
    assert (back.read((0, 0, *shape)) == annotations.read((0, 0, *shape))).all()
    print(f"{name:20s} the same labels, {len(back.snapshot().dense_regions)} dense regions")
