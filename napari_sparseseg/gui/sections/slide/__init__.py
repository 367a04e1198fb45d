"""The slide section of the panel."""
