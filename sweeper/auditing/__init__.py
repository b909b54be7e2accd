"""`sweeper audit`: membership attacks on any model's stored outputs, without PyTorch."""
