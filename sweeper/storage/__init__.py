"""Files below one location, on a local disk or in an object store."""
