"""One module per way to read pixels."""
