"""Text to token ids and back: training, files, exact token bytes, streaming.

The hard part (the BPE merges) is the `tokenizers` library's. This folder adds what a model's life needs around it:
special tokens in a fixed order, user text that can never become one, the exact bytes behind every id, and files
that `transformers.AutoTokenizer` reads to the same ids.
"""
