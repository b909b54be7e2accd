"""Comparisons of a group of recorded targets. One file per comparison."""
