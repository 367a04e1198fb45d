"""Annotation files as other programs write them."""

from __future__ import annotations

import json


def qupath(path, shapes):
    """A GeoJSON as QuPath writes it: x before y, classification by name; `shapes` is [(name, (x, y, w, h))]."""
    features = []
    for name, (x, y, w, h) in shapes:
        ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
            }
        )
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
