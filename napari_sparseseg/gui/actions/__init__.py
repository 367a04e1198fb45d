"""What the panel's buttons do: each module joins one section with the session."""
