"""Datasets of labeled images, held as tensors. One file per dataset; users type the file's name."""
