"""What becomes of a predicted label image: where it is made, cleaned up, and how sure it is."""
