"""The classes section of the panel."""
