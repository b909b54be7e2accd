"""Everything a reader gets, gathered on one HTML page."""
