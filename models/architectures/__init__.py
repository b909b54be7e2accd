"""Networks that targets are made of. One file per architecture; the file's name is the name users type."""
