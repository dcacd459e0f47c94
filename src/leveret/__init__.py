"""Leveret: the whole life of an open language model in one package."""
