"""Training data: read it, tokenize it once, pack it into rows, mix the rows in a seeded order."""
