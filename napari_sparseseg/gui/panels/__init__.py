"""The sections of the dock panel, one module each."""
