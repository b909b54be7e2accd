"""Sweeps: the checked file, its trials, and what they resolve to."""
