"""The verb that trains a model on text, from random weights or from an existing model."""
