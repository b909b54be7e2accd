"""One unit of work at a time, as a worker does it, and which comes next; without Ray."""
