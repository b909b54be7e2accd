"""Datasets of labeled images and of rows of a table, held as tensors. One file per dataset; users type the file's name."""
