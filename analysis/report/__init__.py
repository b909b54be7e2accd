"""The report: findings in words, figures, files and one HTML page."""
