"""What the records say: one row per target, comparisons with the baseline, verdicts."""
