"""The list of training runs."""
