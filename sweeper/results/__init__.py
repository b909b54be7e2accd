"""The results folder: its files, its status, and how it is gathered."""
