"""The server: a model behind an OpenAI-compatible HTTP endpoint."""
