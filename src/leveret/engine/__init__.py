"""The engine runs a model: batched generation on token ids, and the text model that people talk to."""
