"""One folder a paper: its numbers, tables, figures and claims."""
