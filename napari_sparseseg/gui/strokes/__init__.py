"""The list of annotations: a dock of its own beside the panel."""
