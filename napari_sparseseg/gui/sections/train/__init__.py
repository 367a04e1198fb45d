"""The train section of the panel."""
