"""Membership inference: was this example in the training set? One file per attack."""
