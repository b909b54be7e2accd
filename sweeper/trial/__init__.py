"""Runs one trial, from its configuration to its records, without Ray."""
