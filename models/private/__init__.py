"""Private gradients: per-example norms, rules over them, accounting."""
