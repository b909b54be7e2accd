"""One trial from configuration to records, without Ray."""
