"""The predict section of the panel."""
