"""Products of many tokens, on weights that are unpacked to float16 first."""
