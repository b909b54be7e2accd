"""Everything needed to train one target: data, architectures, defenses, private gradients, the training loop."""
