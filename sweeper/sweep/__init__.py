"""What a sweep is: its file, checked; its trials; what they resolve to."""
