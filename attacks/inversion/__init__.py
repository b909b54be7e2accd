"""Model inversion: reconstructing inputs from a model. One file per attack."""
