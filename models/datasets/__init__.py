"""Images with labels, held as tensors. One file per dataset; the file's name is the name users type."""
