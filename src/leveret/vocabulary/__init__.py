"""`leveret tokenizer`: train a tokenizer on your texts."""
