"""Answers that must be calls of tools, as grammars."""
