"""Parquet in; tables, figures, trade-off curves and one self-contained HTML report out.

The package reads only the declared Parquet tables, so a machine that never trained anything can make a report.
"""
