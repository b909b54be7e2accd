"""The results folder: what is recorded, how it stands, and how it is gathered."""
