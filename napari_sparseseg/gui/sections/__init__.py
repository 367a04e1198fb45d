"""Sections of the panel: a view (widgets) and a controller (what they do) each."""
