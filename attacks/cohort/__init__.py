"""Attacks on a cohort: models that differ only by their seed, each attacked with the others as its references."""
