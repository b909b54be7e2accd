"""Figures of any sweep, as PNG and SVG."""
