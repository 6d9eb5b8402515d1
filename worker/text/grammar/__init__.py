"""Structured output: which tokens an answer may have next, by a grammar."""
