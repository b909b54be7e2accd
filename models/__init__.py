"""Everything that makes one trained target: data, architectures, defenses, private gradients, the training loop."""
