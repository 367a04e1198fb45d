"""What lies over the canvas: scale bar, magnification, overview map; going places; snapshots and legends."""
