"""What compares a group of targets with one another."""
