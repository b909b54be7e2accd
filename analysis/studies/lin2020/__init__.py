"""Lin et al. (2020): noise before or after clipping."""
