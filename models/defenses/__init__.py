"""Defenses of a target. One file per defense; users type the file's name."""
