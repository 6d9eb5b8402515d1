"""Prompt files: reading their lines, running them as jobs, and going on where an earlier run stopped."""
