"""Tables, and how they are written as CSV, LaTeX and HTML."""
