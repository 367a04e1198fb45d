"""Layers of a slide in the viewer."""
