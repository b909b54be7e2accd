"""Everything done to a trained target, and the metrics of an attack."""
