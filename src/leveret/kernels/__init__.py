"""Fast paths, each beside a plain PyTorch twin of the same signature."""
