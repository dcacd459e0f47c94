"""Tools: declare functions once, call them in few tokens, and never accept a call that does not fit its schema."""
