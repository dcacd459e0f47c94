"""Text cut into comparable tokens: one Han character, or one word of a script that writes spaces."""
