"""Pages for people on the server: a conversation at /gradio, runs at /runs, what guards them, their words."""
