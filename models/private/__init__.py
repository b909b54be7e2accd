"""Private gradients: per-example gradient norms, clipping and noise rules, accounting."""
