"""Products of many tokens, on float16 copies of weights."""
