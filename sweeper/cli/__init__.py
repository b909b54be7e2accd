"""The command line: the commands and the terminal output. Only this package prints."""

from sweeper.cli.app import app, main

__all__ = ["app", "main"]
