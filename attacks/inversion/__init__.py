"""Model inversion: what did the input look like? One file per attack."""
