"""The verb `evaluate`: a model in, what it gets right out, with what was measured and how."""
