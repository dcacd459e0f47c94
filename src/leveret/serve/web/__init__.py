"""Pages for people on the server: a conversation at /gradio, what guards it, its words."""
