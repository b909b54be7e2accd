"""Defenses of a target. One file per defense; the file's name is the name users type."""
