"""Text to token ids: from the vocabularies in GGUF files, and from tokenizer.json files."""
