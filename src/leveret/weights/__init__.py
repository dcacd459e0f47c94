"""Model directories that transformers, vLLM and llama.cpp can load: reading, writing, changing the vocabulary."""
