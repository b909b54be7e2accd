"""Runs one unit of work at a time in a worker, and decides which comes next. Without Ray."""
