"""The verb that teaches a model conversations and tool calls."""
