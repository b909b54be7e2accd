"""Attacks on trained targets, and metrics of attacks."""
