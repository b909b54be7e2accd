"""The command line: commands, and what the terminal shows. Only this package prints."""

from sweeper.cli.app import app, main

__all__ = ["app", "main"]
