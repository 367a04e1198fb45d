"""The header of the panel and its menu."""
