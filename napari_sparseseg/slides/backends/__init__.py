"""One module per decoder; `opening` chooses between them."""
