"""Lomurno & Matteucci (2022): DP-SGD against regularization."""
