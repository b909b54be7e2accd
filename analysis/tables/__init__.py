"""One model of a table; how its entries read; and its three writers: CSV, LaTeX and HTML."""
