"""A local page on one or more results, running or not: `sweeper view`. It reads the stores and writes nothing there."""
