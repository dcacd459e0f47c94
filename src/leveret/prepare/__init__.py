"""The verb `prepare`: gather text and generate requests, split into what is trained on and what is held out."""
