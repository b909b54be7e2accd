"""Parquet in; tables, figures, trade-off curves and one self-contained HTML report out.

Reads only the declared Parquet tables, so a report can be made on a machine that never trained anything.
"""
