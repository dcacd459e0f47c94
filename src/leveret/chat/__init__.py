"""Conversations to token ids and training mask, through the chat template that travels with the model."""
