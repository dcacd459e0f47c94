"""Backends: other programs that run a model in place of our engine, behind the same interface."""
