"""Network architectures of targets. One file per architecture; users type the file's name."""
