"""The model of a table, its writers (CSV, LaTeX, HTML), and the tables of any sweep."""
