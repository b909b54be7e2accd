"""The columns of each Parquet table, by what they say: targets, attacks on one target, comparisons of several."""
