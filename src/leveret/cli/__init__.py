"""The command line: a thin skin over the table of commands, plus the commands that are no verb."""
