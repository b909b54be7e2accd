"""Command line, sweep specification, scheduling and records."""

__version__ = "0.1.0"
