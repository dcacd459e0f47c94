"""Recipes: a list of stages checked whole before anything runs, and run so that nothing is done twice."""
