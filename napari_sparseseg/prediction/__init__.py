"""Predictions: tiles, the live view, whole slides, and where to look next."""
