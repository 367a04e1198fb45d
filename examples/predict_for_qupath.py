"""Predict a whole slide and write what QuPath opens: an OME-TIFF, regions as GeoJSON, areas as CSV.

Run it in an empty folder: ``python predict_for_qupath.py``. In QuPath, drop ``regions.geojson`` on the open slide.
"""

from napari_sparseseg import Session
from napari_sparseseg.samples import sample_scribbles, sample_slide

with Session(()) as session:
    session.open(sample_slide())
    session.import_annotations(sample_scribbles())  # as QuPath exports them
    session.train(seconds=5, wait=True)

    result = session.predict_slide(
        "prediction.ome.tif",
        geojson="regions.geojson",
        csv="areas.csv",
        mpp=4.0,  # of the result; the network reads the slide at its training resolution all the same
        min_area_um2=500,
        overwrite=True,
    )
    print(f"{result.shape[1]} x {result.shape[0]} px, {result.objects} objects")
    for row in result.table:
        print(f"  {row.class_name:15s} {row.mm2:6.3f} mm2  {row.objects or 0:4d} objects")

    session.annotations.to_geojson("scribbles.geojson", overwrite=True)  # and what was drawn, to continue in QuPath
